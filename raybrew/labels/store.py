"""The label store: labels of teachers, shared by every epoch, worker, trial and run."""

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
    open_shard,
    write_shard,
)

# Where the label of a key is: a sorted table of all the shards' keys, searched by the batch.


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


# Labels that were appended and are not on disk yet.


class WriteBuffer:
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

    def last(self, nbytes: int) -> "WriteBuffer":
        """Return the newest parts: as many as are no larger than this, and one at least."""
        sizes = [k.nbytes + p.nbytes for k, p in zip(self._keys, self.payloads, strict=True)]
        sums = np.cumsum(sizes[::-1])
        count = max(1, int(np.searchsorted(sums, nbytes, side="right")))
        newest = WriteBuffer()
        for keys, payload in zip(self._keys[-count:], self.payloads[-count:], strict=True):
            newest.add(keys, payload)
        return newest


# The label store: what teachers have answered, for every epoch, worker, trial and run.
#
#     <store>/<teacher fingerprint>/manifest.json
#                                   <signal>/shard-*.arrow
#                                            *.damaged     set aside, recomputed
#                                   .claims/ who computes what right now, see `claims`
#
# `SignalStore` is one such folder. Any number of processes may read and write it at once: shards
# are immutable and have random names, so that nothing needs a lock. What is appended can be read
# by the same process at once, by others after `flush` and their `refresh`. Threads may share one.
#
# Only a file whose bytes are wrong is set aside, since that is for everybody. What the system
# refuses (a memory map, a handle, a permission) is a `LabelError`, and a shard of another version
# is passed over: the files stay as they are. Each open shard is one memory map, of which Linux
# grants 65,530 a process; as smaller ones are merged, that is a shard for each 8 MB of labels and
# 16 for each writer.

logger = logging.getLogger(__name__)

FLUSH_BYTES = 32 << 20
"""Appended labels are written as a shard when they reach this size."""
SHARD_OVERHEAD_BYTES = 2048
"""What a file has besides its labels, at most."""
_MAX_LISTINGS = 20


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
        folder: where they lie in the store.

    Raises:
        LabelError: from every method that reads or writes, where the system refuses.
    """

    def __init__(self, location: Location, spec: StoreSpec, *, teacher: str, signal: str):
        self.folder = f"{checked_name(teacher)}/{checked_name(signal)}"
        self._location, self._spec = location, spec
        self._teacher, self._signal = teacher, signal
        self._lock = threading.RLock()
        self._shards: dict[str, Shard] = {}
        self._refused: set[str] = set()
        self._index_shards({})
        self._fresh = WriteBuffer()
        self._kept_bytes = self._dropped = 0
        self._listed_s = -float("inf")
        self.refresh()

    def __len__(self) -> int:
        """Labels that this process can see; one in two shards counts twice."""
        return len(self._index) + len(self._fresh)

    @property
    def unstored(self) -> int:
        """Labels that there was no room for; of these the newest are still in memory."""
        return self._dropped + (len(self._fresh) if self._kept_bytes else 0)

    def refresh(self, *, now: bool = False) -> None:
        """See what other processes have written since, at most once in `Location.listing_s`.

        Args:
            now: look in any case.
        """
        with self._alone():
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
        with self._alone():
            found, part, row = self._find(keys)
            parts = self._payloads
            if len(self._fresh):
                fresh, fresh_part, fresh_row = self._fresh.find(keys)
                fresh &= ~found
                part[fresh], row[fresh] = fresh_part[fresh] + len(parts), fresh_row[fresh]
                found, parts = found | fresh, parts + self._fresh.payloads
            if found.all() and len(found):
                return found, Payload.gather(parts, part, row)
            if not found.any():
                return found, None
            return found, Payload.gather(parts, part[found], row[found])

    def contains(self, keys: np.ndarray) -> np.ndarray:
        """Return whether each key, uint64 (n, 2), has a whole label, bool (n,)."""
        with self._alone():
            found = self._find(keys)[0]
            return found | self._fresh.find(keys)[0] if len(self._fresh) else found

    def append(self, keys: np.ndarray, payload: Payload) -> None:
        """Keep labels; they are on disk after `flush`, or once `FLUSH_BYTES` are waiting."""
        with self._lock:
            if len(keys):
                self._fresh.add(keys, payload)
            if self._fresh.nbytes >= FLUSH_BYTES + self._kept_bytes:
                self.flush()

    def flush(self) -> None:
        """Write what was appended as a shard.

        Raises:
            StoreFullError: there is no room and the store says `stop`.
            LabelError: it can't be written; the labels stay readable in this process.

        """
        with self._alone():
            if not len(self._fresh):
                return
            try:
                self._write()
            except StoreFullError as error:
                if self._spec.on_full == "stop":
                    raise
                self._go_on(error)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock, label_errors(self._location.root):
            yield

    def _write(self) -> None:
        keys, payload = self._fresh.all()
        place, teacher, signal = (self._location, self.folder), self._teacher, self._signal
        nbytes = self._fresh.nbytes + SHARD_OVERHEAD_BYTES
        evict(self._location, nbytes, self._spec.max_bytes, self._spec.since)
        write_shard(*place, keys, payload, teacher=teacher, signal=signal)
        self._fresh, self._kept_bytes = WriteBuffer(), 0
        try:
            compact(*place, teacher=teacher, signal=signal)
        except LabelError as error:
            # The labels themselves are written.
            logger.warning("small shards were not merged: %s", error)
        self._list()

    def _go_on(self, error: StoreFullError) -> None:
        before = len(self._fresh)
        self._fresh = self._fresh.last(FLUSH_BYTES)
        self._kept_bytes = self._fresh.nbytes
        self._dropped += before - len(self._fresh)
        logger.error(
            "%s; going on without storing, as labels.on_full says: %d labels of teacher %s are not "
            "kept so far and will be computed again when they are needed again",
            error,
            self.unstored,
            self._teacher,
        )

    def _find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # Among the shards, those that are hit having been verified.
        while True:
            found, shard, row = self._index.find(keys)
            hit = np.flatnonzero(np.bincount(shard[found]))
            if not self._use(hit.tolist()):
                return found, shard, row

    def _use(self, numbers: list[int]) -> bool:
        """Verify shards; return whether one had to be replaced, so that all have new numbers."""
        for number in numbers:
            name = self._names[number]
            shard = self._shards[name]
            if not shard.verified:
                self._location.touch(self._path(name))
            try:
                shard.verify()
            except DamagedShardError as error:
                replaced = self._replace(name, error)
                others = {n: shard for n, shard in self._shards.items() if n != name}
                self._index_shards(others | ({name: replaced} if replaced else {}))
                return True
        return False

    def _list(self) -> None:
        for _ in range(_MAX_LISTINGS):
            files = self._location.shards(self.folder)
            names = {f.name for f in files if f.folder == self.folder} - self._refused
            if names == self._shards.keys():
                break
            shards: dict[str, Shard] = {}
            gone = False
            for name in sorted(names):
                try:
                    shard = self._shards.get(name) or self._open(name)
                except FileNotFoundError:
                    gone = True
                    continue
                shards |= {name: shard} if shard else {}
            self._index_shards(shards)
            if not gone:
                break
        self._listed_s = time.monotonic()

    def _open(self, name: str) -> Shard | None:
        try:
            return self._fetch(name)
        except UnusableShardError as error:
            return self._replace(name, error)

    def _fetch(self, name: str) -> Shard:
        path = self._location.fetch(self._path(name))
        return open_shard(path, teacher=self._teacher, signal=self._signal)

    def _replace(self, name: str, error: UnusableShardError) -> Shard | None:
        """Fetch a shard again, as its copy may be at fault; else do without it."""
        if self._location.forget(self._path(name)):
            try:
                shard = self._fetch(name)
                shard.verify()
            except FileNotFoundError:
                return None
            except UnusableShardError as again:
                error = again
            else:
                return shard
        self._pass_over(name, error)
        return None

    def _pass_over(self, name: str, error: UnusableShardError) -> None:
        self._refused.add(name)
        if not isinstance(error, DamagedShardError):
            logger.warning("%s; passed over, its labels are recomputed", error)
            return
        logger.warning("%s; set aside as %s.damaged, its labels are recomputed", error, name)
        try:
            self._location.set_aside(self._path(name))
        except OSError as reason:
            logger.warning("shard %s: can't be renamed (%s); passed over", name, reason)

    def _index_shards(self, shards: dict[str, Shard]) -> None:
        self._shards = shards
        self._names = list(shards)
        self._payloads = [shard.payload for shard in shards.values()]
        self._index = KeyIndex([shard.keys for shard in shards.values()])

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}"
