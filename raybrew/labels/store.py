"""The label store: what teachers have answered, for every epoch, worker, trial and run.

    <store>/<teacher fingerprint>/manifest.json
                                  <signal>/shard-*.arrow
                                           *.damaged     set aside, recomputed
                                  .claims/ which process computes what, see `leases`

    append ──► WriteBuffer ──flush──► shard        read ──► KeyIndex ──► shards, mapped
                   └── eviction before it, compaction after it

`SignalStore` is one folder of shards. Any number of processes may read and write it at once: shards
are immutable and have random names, so that nothing needs a lock. Appended labels can be read by
the same process at once, by others after `flush` and their `refresh`. Threads may share one.

Only a file whose bytes are wrong is set aside, since that affects every process. What the system
refuses (a memory map, a handle, a permission) is a `LabelError`, and a shard of another version is
skipped: the files stay as they are. Each open shard is one memory map, of which Linux grants 65,530
a process; as small shards are compacted, that is a shard for each 8 MB of labels and 16 for each
writer.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from raybrew.data.payload import Payload, Signal
from raybrew.errors import LabelError, StoreFullError
from raybrew.labels.location import Location, checked_name, label_errors
from raybrew.labels.maintenance import compact, evict
from raybrew.labels.remote import StoreSpec, location_of
from raybrew.labels.shards import (
    DamagedShardError,
    Shard,
    UnusableShardError,
    write_shard,
)

logger = logging.getLogger(__name__)

FLUSH_BYTES = 32 << 20
"""Appended labels are written as a shard when they reach this size."""
SHARD_OVERHEAD_BYTES = 2048
"""Bytes of a file besides its labels, at most."""
_MAX_LISTINGS = 20


class KeyIndex:
    """Finds keys among the keys of several shards: 20 bytes of memory a key.

    A sorted table of all keys, searched by the batch.

    Args:
        shards: uint64 (n, 2) each: the keys of each shard. Where two shards hold a key, either
            will do: a label is a function of its key.
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


class WriteBuffer:
    """Appended labels that are not on disk yet, in parts as they came.

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
        """Append a part.

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

    def last(self, nbytes: int) -> "WriteBuffer":
        """Return the newest parts that fit into so many bytes; one at least."""
        parts = list(zip(self._keys, self.payloads, strict=True))
        sums = np.cumsum([keys.nbytes + payload.nbytes for keys, payload in reversed(parts)])
        newest = WriteBuffer()
        for keys, payload in parts[-max(1, int(np.searchsorted(sums, nbytes, side="right"))) :]:
            newest.add(keys, payload)
        return newest


class LabelStore:
    """Labels of any number of teachers and signals.

    Args:
        spec: where it is; a folder or URI alone stands for a store without bounds.
        location: its files, if they are not where `spec` says.

    Raises:
        ConfigError: it can't be there.
    """

    def __init__(self, spec: StoreSpec | str | Path, location: Location | None = None):
        self.spec = spec if isinstance(spec, StoreSpec) else StoreSpec(str(spec))
        self.location = location or location_of(self.spec)

    def signal(self, teacher: str, signal: Signal) -> "SignalStore":
        """Open the labels of a teacher (its fingerprint) and a signal."""
        return SignalStore(self.location, self.spec, teacher=teacher, signal=signal.name)


class SignalStore:
    """The labels of one teacher and one signal.

    Attributes:
        folder: its path in the store.

    Raises:
        LabelError: from every method that reads or writes, where the system refuses.
    """

    def __init__(self, location: Location, spec: StoreSpec, *, teacher: str, signal: str):
        self.folder = f"{checked_name(teacher)}/{checked_name(signal)}"
        self._location, self._spec = location, spec
        self._lock = threading.RLock()
        self._skipped: set[str] = set()
        self._index_shards({})
        self._buffer = WriteBuffer()
        # After a store was found full: bytes that stay in memory, and labels that were dropped.
        self._unstored_bytes = self._dropped = 0
        self._listed_s = -float("inf")
        self.refresh()

    def __len__(self) -> int:
        """Labels that this process can see; one in two shards counts twice."""
        return len(self._index) + len(self._buffer)

    @property
    def unstored(self) -> int:
        """Labels that didn't fit into the store; the newest of them are still in memory."""
        return self._dropped + (len(self._buffer) if self._unstored_bytes else 0)

    def refresh(self, *, now: bool = False) -> None:
        """See labels that other processes have written, at most once in `Location.listing_s`.

        Args:
            now: look in any case.
        """
        with self._exclusively():
            if now or time.monotonic() - self._listed_s >= self._location.listing_s:
                self._list()

    def read(self, keys: np.ndarray) -> tuple[np.ndarray, Payload | None]:
        """Return the labels that are there.

        Args:
            keys: uint64 (n, 2).

        Returns:
            Whether each key has a label, bool (n,), and the labels of those that have, in
            their order; None if none has.
        """
        with self._exclusively():
            found, part, row = self._find(keys)
            payloads = self._payloads
            if len(self._buffer):
                buffered, buffer_part, buffer_row = self._buffer.find(keys)
                buffered &= ~found
                part[buffered] = buffer_part[buffered] + len(payloads)
                row[buffered] = buffer_row[buffered]
                found, payloads = found | buffered, payloads + self._buffer.payloads
            if not found.any():
                return found, None
            return found, Payload.gather(payloads, part[found], row[found])

    def contains(self, keys: np.ndarray) -> np.ndarray:
        """Return whether each key, uint64 (n, 2), has a whole label, bool (n,)."""
        with self._exclusively():
            found = self._find(keys)[0]
            return found | self._buffer.find(keys)[0] if len(self._buffer) else found

    def append(self, keys: np.ndarray, payload: Payload) -> None:
        """Add labels; they are on disk after `flush`, or once `FLUSH_BYTES` are waiting."""
        with self._lock:
            if len(keys):
                self._buffer.add(keys, payload)
            if self._buffer.nbytes >= FLUSH_BYTES + self._unstored_bytes:
                self.flush()

    def flush(self) -> None:
        """Write appended labels as a shard.

        Raises:
            StoreFullError: they don't fit and the store's `on_full` is `stop`.
            LabelError: they can't be written; they can still be read in this process.
        """
        with self._exclusively():
            if not len(self._buffer):
                return
            try:
                self._write()
            except StoreFullError as error:
                if self._spec.on_full == "stop":
                    raise
                self._continue_without_storing(error)

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        with self._lock, label_errors(self._location.root):
            yield

    def _write(self) -> None:
        keys, payload = self._buffer.all()
        nbytes = self._buffer.nbytes + SHARD_OVERHEAD_BYTES
        evict(self._location, nbytes, self._spec.max_bytes, self._spec.since)
        write_shard(self._location, self.folder, keys, payload)
        self._buffer, self._unstored_bytes = WriteBuffer(), 0
        try:
            compact(self._location, self.folder)
        except LabelError as error:
            # The labels themselves are written.
            logger.warning("small shards were not merged: %s", error)
        self._list()

    def _continue_without_storing(self, error: StoreFullError) -> None:
        before = len(self._buffer)
        self._buffer = self._buffer.last(FLUSH_BYTES)
        self._unstored_bytes = self._buffer.nbytes
        self._dropped += before - len(self._buffer)
        logger.error(
            "%s; going on without storing, as labels.on_full is go_on: %d labels of teacher %s "
            "are not stored so far and will be computed again when they are needed",
            error,
            self.unstored,
            self.folder.partition("/")[0],
        )

    def _find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Look keys up among the shards; every shard with a hit is verified."""
        while True:
            found, shard, row = self._index.find(keys)
            hit = np.flatnonzero(np.bincount(shard[found]))
            # A shard that is replaced changes the numbers of all.
            if all(self._verify(self._shard_names[number]) for number in hit):
                return found, shard, row

    def _verify(self, name: str) -> bool:
        """Verify a shard; if it is damaged, replace it and return False."""
        shard = self._shards[name]
        if not shard.verified:
            self._location.touch(self._path(name))
        try:
            shard.verify()
        except DamagedShardError as error:
            replaced = self._replace(name, error)
            others = {n: shard for n, shard in self._shards.items() if n != name}
            self._index_shards(others | ({name: replaced} if replaced else {}))
            return False
        return True

    def _list(self) -> None:
        for _ in range(_MAX_LISTINGS):
            names = {file.name for file in self._location.shards(self.folder)} - self._skipped
            if names == self._shards.keys():
                break
            shards: dict[str, Shard] = {}
            complete = True
            for name in sorted(names):
                try:
                    shard = self._shards.get(name) or self._open(name)
                except FileNotFoundError:
                    complete = False
                    continue
                shards |= {name: shard} if shard else {}
            self._index_shards(shards)
            if complete:
                break
        self._listed_s = time.monotonic()

    def _open(self, name: str) -> Shard | None:
        try:
            return self._fetch(name)
        except UnusableShardError as error:
            return self._replace(name, error)

    def _fetch(self, name: str) -> Shard:
        return Shard(self._location.fetch(self._path(name)), self.folder)

    def _replace(self, name: str, error: UnusableShardError) -> Shard | None:
        """Fetch a shard again, as its copy may be at fault; else skip it."""
        if self._location.forget(self._path(name)):
            try:
                shard = self._fetch(name)
                shard.verify()
                return shard
            except FileNotFoundError:
                return None
            except UnusableShardError as again:
                error = again
        self._skipped.add(name)
        if not isinstance(error, DamagedShardError):
            logger.warning("%s; skipped, its labels are recomputed", error)
            return None
        logger.warning("%s; set aside as %s.damaged, its labels are recomputed", error, name)
        try:
            self._location.set_aside(self._path(name))
        except OSError as reason:
            logger.warning("shard %s: can't be renamed (%s); skipped", name, reason)
        return None

    def _index_shards(self, shards: dict[str, Shard]) -> None:
        self._shards = shards
        self._shard_names = list(shards)
        self._payloads = [shard.payload for shard in shards.values()]
        self._index = KeyIndex([shard.keys for shard in shards.values()])

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}"
