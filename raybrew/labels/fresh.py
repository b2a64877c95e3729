"""Labels that were appended and are not on disk yet."""

import numpy as np

from raybrew.labels.payload import Payload

__all__ = ["Fresh"]


class Fresh:
    """Appended labels, in parts as they came.

    Attributes:
        payloads: values of each part.
        nbytes: of keys and values.
    """

    def __init__(self):
        self.payloads: list[Payload] = []
        self.nbytes = 0
        self._keys: list[np.ndarray] = []
        self._rows: dict[bytes, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, keys: np.ndarray, payload: Payload) -> None:
        """Keep labels.

        Args:
            keys: uint64 (n, 2).
            payload: n rows.
        """
        number = len(self._keys)
        self._keys.append(keys)
        self.payloads.append(payload)
        self._rows.update((key.tobytes(), (number, i)) for i, key in enumerate(keys))
        self.nbytes += keys.nbytes + payload.nbytes

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Look keys up.

        Returns:
            Whether each is there, bool (n,); its part and its row in it, int64 (n,).
        """
        places = [self._rows.get(key.tobytes(), (-1, 0)) for key in keys]
        part, row = np.array(places, np.int64).reshape(-1, 2).T
        return part >= 0, part, row

    def all(self) -> tuple[np.ndarray, Payload]:
        """Return all keys, uint64 (n, 2), and their values."""
        return np.concatenate(self._keys), Payload.concat(self.payloads)

    def last(self, nbytes: int) -> "Fresh":
        """Return the newest parts: as many as are no larger than this, and one at least."""
        sizes = [k.nbytes + p.nbytes for k, p in zip(self._keys, self.payloads, strict=True)]
        sums = np.cumsum(sizes[::-1])
        count = max(1, int(np.searchsorted(sums, nbytes, side="right")))
        newest = Fresh()
        for keys, payload in zip(self._keys[-count:], self.payloads[-count:], strict=True):
            newest.add(keys, payload)
        return newest
