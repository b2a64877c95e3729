"""Where the label of a key is: a sorted table of all the shards' keys, searched by the batch."""

from collections.abc import Sequence

import numpy as np

__all__ = ["KeyIndex"]


class KeyIndex:
    """Finds keys among the keys of several shards: 20 bytes of memory a key.

    Args:
        shards: uint64 (n, 2) each: the keys of each shard. Where two shards hold a key, either
            serves: a label is a function of its key.
    """

    def __init__(self, shards: Sequence[np.ndarray]):
        keys = np.concatenate(shards) if shards else np.empty((0, 2), np.uint64)
        order = np.argsort(keys[:, 0], kind="stable").astype(
            np.uint32 if len(keys) < 2**32 else np.int64
        )
        self._high = np.ascontiguousarray(keys[order, 0])
        self._low = np.ascontiguousarray(keys[order, 1])
        self._place = order
        self._starts = np.cumsum([0, *map(len, shards)])

    def __len__(self) -> int:
        return len(self._high)

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Look keys up.

        Args:
            keys: uint64 (n, 2).

        Returns:
            Whether each is there, bool (n,); its shard, int64 (n,); its row in it, int64 (n,).

        """
        if not len(self):
            none = np.zeros((3, len(keys)), np.int64)
            return none[0].astype(bool), none[1], none[2]
        place = np.minimum(np.searchsorted(self._high, keys[:, 0]), len(self) - 1)
        half = self._high[place] == keys[:, 0]
        found = half & (self._low[place] == keys[:, 1])
        # Two keys may share their first half: then look at the neighbours, one by one.
        for i in np.flatnonzero(half & ~found):
            p = place[i] + 1
            while p < len(self) and self._high[p] == keys[i, 0]:
                if self._low[p] == keys[i, 1]:
                    place[i], found[i] = p, True
                    break
                p += 1
        row = self._place[place].astype(np.int64)
        if len(self._starts) == 2:
            return found, np.zeros(len(keys), np.int64), row
        shard = np.searchsorted(self._starts, row, side="right") - 1
        return found, shard, row - self._starts[shard]
