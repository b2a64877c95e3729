"""The label store: what teachers have answered, for every epoch, worker, trial and run.

    <store>/<teacher fingerprint>/<signal>/shard-*.arrow
                                           *.damaged     set aside, recomputed

`SignalStore` is one such folder. Any number of processes may read and write it at once: shards
are immutable and have random names, so that nothing needs a lock. What is appended can be read
by the same process at once, by others after `flush` and their `refresh`.
"""

import logging
from pathlib import Path

import numpy as np

from raybrew.errors import LabelError
from raybrew.labels.index import KeyIndex
from raybrew.labels.payload import Payload, Signal
from raybrew.labels.shards import Shard, open_shard, write_shard

__all__ = ["FLUSH_BYTES", "LabelStore", "SignalStore"]

logger = logging.getLogger(__name__)

FLUSH_BYTES = 32 << 20
"""Appended labels are written as a shard when they reach this size."""


class LabelStore:
    """A folder of labels of any number of teachers and signals."""

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser()

    def signal(self, teacher: str, signal: Signal) -> "SignalStore":
        """Open the labels of a teacher (its fingerprint) and a signal."""
        return SignalStore(self.root / teacher / signal.name, teacher=teacher, signal=signal.name)


class SignalStore:
    """The labels of one teacher and one signal."""

    def __init__(self, folder: Path, *, teacher: str, signal: str):
        self.folder = folder
        self._teacher, self._signal = teacher, signal
        self._shards: dict[str, Shard] = {}
        self._order: list[Shard] = []
        self._index = KeyIndex([])
        self._fresh = _Fresh()
        self.refresh()

    def __len__(self) -> int:
        """Labels that this process can see; one in two shards counts twice."""
        return len(self._index) + len(self._fresh)

    def refresh(self) -> None:
        """See what other processes have written since."""
        names = {path.name for path in self.folder.glob("shard-*.arrow")}
        if names == self._shards.keys():
            return
        for name in sorted(names - self._shards.keys()):
            path = self.folder / name
            try:
                self._shards[name] = open_shard(path, teacher=self._teacher, signal=self._signal)
            except LabelError as error:
                self._set_aside(path, error)
        self._reindex(names)

    def read(self, keys: np.ndarray) -> tuple[np.ndarray, Payload | None]:
        """Return the labels that are there.

        Args:
            keys: uint64 (n, 2).

        Returns:
            Whether each key has a label, bool (n,), and the labels of those that have, in
            their order; None if none has.

        """
        while True:
            found, shard, row = self._index.find(keys)
            try:
                parts = self._gather(shard[found], row[found])
                break
            except _Damaged as damage:
                self._set_aside(damage.shard.path, damage.error)
                self._reindex(self._shards.keys() - {damage.shard.path.name})
        fresh = self._fresh.find(keys, ~found) if len(self._fresh) else None
        if fresh is None:
            return found, parts
        in_fresh, extra = fresh
        both = extra if parts is None else Payload.concat([parts, extra])
        order = np.argsort(np.concatenate([np.flatnonzero(found), np.flatnonzero(in_fresh)]))
        return found | in_fresh, both.take(order)

    def contains(self, keys: np.ndarray) -> np.ndarray:
        """Return whether each key, uint64 (n, 2), has a label, bool (n,)."""
        found = self._index.find(keys)[0]
        return found | self._fresh.contains(keys)

    def append(self, keys: np.ndarray, payload: Payload) -> None:
        """Keep labels; they are on disk after `flush`, or once `FLUSH_BYTES` are waiting."""
        self._fresh.add(keys, payload)
        if self._fresh.nbytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was appended as a shard.

        Raises:
            LabelError: it can't be written; the labels stay readable in this process.

        """
        if not len(self._fresh):
            return
        keys, payload = self._fresh.all()
        write_shard(self.folder, keys, payload, teacher=self._teacher, signal=self._signal)
        self._fresh = _Fresh()
        self.refresh()

    def _gather(self, shard: np.ndarray, row: np.ndarray) -> Payload | None:
        if not len(row):
            return None
        wanted = np.unique(shard)
        for number in wanted:
            try:
                self._order[number].verify()
            except LabelError as error:
                raise _Damaged(self._order[number], error) from error
        if len(wanted) == 1:
            return self._order[wanted[0]].payload.take(row)
        places = [np.flatnonzero(shard == number) for number in wanted]
        parts = [
            self._order[number].payload.take(row[place])
            for number, place in zip(wanted, places, strict=True)
        ]
        return Payload.concat(parts).take(np.argsort(np.concatenate(places)))

    def _reindex(self, names: set[str]) -> None:
        self._shards = {name: s for name, s in self._shards.items() if name in names}
        self._order = list(self._shards.values())
        self._index = KeyIndex([shard.keys for shard in self._order])

    def _set_aside(self, path: Path, error: LabelError) -> None:
        logger.warning("%s; set aside as %s.damaged, its labels are recomputed", error, path.name)
        # Another process may have been faster.
        if path.exists():
            path.rename(path.with_name(path.name + ".damaged"))


class _Damaged(Exception):
    def __init__(self, shard: Shard, error: LabelError):
        super().__init__(shard.path)
        self.shard, self.error = shard, error


class _Fresh:
    """Labels that were appended and are not on disk yet."""

    def __init__(self):
        self._parts: list[tuple[np.ndarray, Payload]] = []
        self._rows: dict[bytes, int] = {}
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, keys: np.ndarray, payload: Payload) -> None:
        start = sum(len(part) for part, _ in self._parts)
        self._parts.append((keys, payload))
        self._rows.update((key.tobytes(), start + i) for i, key in enumerate(keys))
        self.nbytes += keys.nbytes + payload.nbytes

    def contains(self, keys: np.ndarray) -> np.ndarray:
        return np.fromiter((key.tobytes() in self._rows for key in keys), bool, len(keys))

    def find(self, keys: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, Payload] | None:
        found = among & self.contains(keys)
        if not found.any():
            return None
        rows = np.array([self._rows[key.tobytes()] for key in keys[found]])
        return found, self.all()[1].take(rows)

    def all(self) -> tuple[np.ndarray, Payload]:
        if len(self._parts) > 1:
            keys = np.concatenate([keys for keys, _ in self._parts])
            self._parts = [(keys, Payload.concat([payload for _, payload in self._parts]))]
        return self._parts[0]
