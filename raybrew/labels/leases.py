"""Leases: which process computes which label, among all that share a store.

keys ──► acquire, under the folder's lock ──► mine, written down ──► computed, on disk ──► release
                                          └──► another's ──► wait for its release, or its death

    <store>/<teacher>/.claims/lock        held for a moment; counts the releases
                              *.claim     keys of one process, locked as long as it lives
                              *.wanted    another process waits for one of them

For a store behind a file system of pyarrow's, which has no locks, the folder is in the cache:
leases hold among the processes of one machine.
"""

import errno
import fcntl
import logging
import os
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from raybrew.data.files import explain
from raybrew.errors import LabelError
from raybrew.labels.location import FULL

logger = logging.getLogger(__name__)

LEASES = ".claims"
_KEY_BYTES = 16
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class LeaseResult(NamedTuple):
    """Which labels a process may compute.

    Args:
        mine: which of the keys are this process's to compute, bool (n,).
        released: whether other processes have released some since the last time, which may be on
            disk now.
    """

    mine: np.ndarray
    released: bool


class _LeaseFile:
    """The leases of another process, read up to `nbytes`."""

    def __init__(self, path: Path):
        self.path = path
        self.keys: set[bytes] = set()
        self.nbytes = 0

    @property
    def wanted(self) -> Path:
        return self.path.with_suffix(".wanted")

    def read(self) -> bool:
        """Read what is new; False if its owner is dead."""
        with self.path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(self.nbytes)
                new = file.read()
                self.nbytes += len(new)
                self.keys |= {new[i : i + _KEY_BYTES] for i in range(0, len(new), _KEY_BYTES)}
                return True
        return False

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.wanted.unlink(missing_ok=True)


class _OwnLeaseFile(_LeaseFile):
    """The leases of this process: locked until it is closed, or garbage-collected."""

    def __init__(self, folder: Path):
        # A new file each time: readers only ever find more in it.
        super().__init__(folder / f"{uuid.uuid4().hex}.claim")
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self.close = weakref.finalize(self, os.close, self._file)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.remove()
            raise

    def write(self, names: list[bytes]) -> None:
        new = [name for name in names if name not in self.keys]
        written = os.write(self._file, b"".join(new))
        if written != len(new) * _KEY_BYTES:
            os.ftruncate(self._file, self.nbytes)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self.nbytes += written
        self.keys.update(new)


class Leases:
    """The leases of one process on the labels of one teacher. For one thread, except `wanted`.

    Args:
        folder: of the leases of all processes on them.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._mine: _OwnLeaseFile | None = None
        self._others: dict[str, _LeaseFile] = {}
        self._releases = -1
        self._warned = False

    def acquire(self, keys: np.ndarray, *, waiting: bool = False) -> LeaseResult:
        """Lease the keys that no other process has leased.

        Args:
            keys: uint64 (n, 2).
            waiting: ask the holders of the other keys to write their labels soon.

        Raises:
            LabelError: the store can't be written to.
        """
        names = [key.tobytes() for key in np.ascontiguousarray(keys)]
        try:
            with self._locked() as lock:
                released = self._read_others(lock)
                holders = [self._holder(name) for name in names]
                free = [name for name, h in zip(names, holders, strict=True) if h is None]
                if free:
                    self._mine = self._mine or _OwnLeaseFile(self._folder)
                    self._mine.write(free)
                if waiting:
                    for holder in {id(h): h for h in holders if h is not None}.values():
                        holder.wanted.touch()
        except OSError as error:
            self._continue_without(error)
            return LeaseResult(np.ones(len(keys), bool), released=True)
        return LeaseResult(np.array([holder is None for holder in holders], bool), released)

    def wanted(self) -> bool:
        """Return whether another process waits for labels of this one; any thread may ask."""
        mine = self._mine
        return mine is not None and mine.wanted.exists()

    def release(self) -> None:
        """Release all leases: the labels are on disk now, or never will be."""
        mine, self._mine = self._mine, None
        if mine is None:
            return
        try:
            with self._locked() as lock:
                releases = _count(lock)
                if releases == self._releases:  # none but this process's own
                    self._releases += 1
                os.pwrite(lock.fileno(), (releases + 1).to_bytes(8, "little"), 0)
                mine.remove()
        except OSError as error:
            self._continue_without(error)
        finally:
            mine.close()  # a file without a lock has no owner

    @contextmanager
    def _locked(self) -> Iterator[FileIO]:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with FileIO(descriptor, "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock

    def _read_others(self, lock: FileIO) -> bool:
        """Read the leases of other processes; return whether some were released."""
        releases, before = _count(lock), self._releases
        self._releases = releases
        released = releases != before
        mine = None if self._mine is None else self._mine.path.name
        files = [path for path in self._folder.iterdir() if path.suffix == ".claim"]
        present = {path.name: path for path in files if path.name != mine}
        self._others = {name: each for name, each in self._others.items() if name in present}
        for name, path in present.items():
            other = self._others.setdefault(name, _LeaseFile(path))
            if not other.read():
                # Labels that it wrote before it died are on disk; the others are free.
                del self._others[name]
                other.remove()
                released = True
        return released

    def _holder(self, name: bytes) -> _LeaseFile | None:
        return next((other for other in self._others.values() if name in other.keys), None)

    def _continue_without(self, error: OSError) -> None:
        if error.errno not in (*FULL, *_NO_LOCKS):
            raise LabelError(
                f"label store: {self._folder} can't be written to, and labels are missing: "
                f"{explain(error)}"
            ) from error
        if not self._warned:
            self._warned = True
            logger.warning(
                "label store: %s can't hold leases (%s); labels that several runs need at the same "
                "time may be computed more than once",
                self._folder,
                error,
            )


def _count(lock: FileIO) -> int:
    return int.from_bytes(os.pread(lock.fileno(), 8, 0), "little")
