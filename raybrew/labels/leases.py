"""Leases: which process computes which label, among all that share a store.

keys ──► take, under the folder's lock ──► mine, written down ──► computed, on disk ──► release
                                       └──► another's ──► wait for its release, or its death

    <store>/<teacher>/.claims/lock        held for a moment; counts the releases
                              *.claim     keys of one process, locked as long as it lives
                              *.wanted    somebody waits for one of them

For a store behind a file system of pyarrow's, which has no locks, the folder is in the cache: it
holds among the processes of one machine.
"""

import errno
import fcntl
import logging
import os
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import numpy as np

from raybrew.data.files import explain
from raybrew.errors import LabelError
from raybrew.labels.location import FULL

logger = logging.getLogger(__name__)

LEASES = ".claims"
_KEY_BYTES = 16
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True)
class LeaseResult:
    """What came of wanting to compute labels.

    Args:
        mine: which of the keys are this process's to compute, bool (n,).
        moved: whether others have let go of some since the last time, which are on disk perhaps.
    """

    mine: np.ndarray
    moved: bool


@dataclass
class _Claim:
    """A file of claims, read or written up to `nbytes`."""

    path: Path
    keys: set[bytes] = field(default_factory=set)
    nbytes: int = 0

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
                self.keys |= _split(new)
                return True
        return False

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.wanted.unlink(missing_ok=True)


class _OwnClaim(_Claim):
    """That of this process: locked until it is closed, or nobody has it any longer."""

    def __init__(self, folder: Path):
        # A new file each time: whoever reads it only ever finds more in it.
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
    """The claims of one process on the labels of one teacher. For one thread, but `wanted`.

    Args:
        folder: of all claims on them.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._mine: _OwnClaim | None = None
        self._others: dict[str, _Claim] = {}
        self._releases = -1
        self._warned = False

    def take(self, keys: np.ndarray, *, waiting: bool = False) -> LeaseResult:
        """Claim the keys that nobody else has claimed.

        Args:
            keys: uint64 (n, 2).
            waiting: ask those who have the others to write them soon.

        Raises:
            LabelError: the store can't be written to.
        """
        names = [key.tobytes() for key in np.ascontiguousarray(keys)]
        try:
            with self._alone() as lock:
                moved = self._look(lock)
                holders = [self._holder(name) for name in names]
                free = [name for name, h in zip(names, holders, strict=True) if h is None]
                if free:
                    self._mine = self._mine or _OwnClaim(self._folder)
                    self._mine.write(free)
                if waiting:
                    for holder in {id(h): h for h in holders if h is not None}.values():
                        holder.wanted.touch()
        except OSError as error:
            self._excuse(error)
            return LeaseResult(np.ones(len(keys), bool), moved=True)
        return LeaseResult(np.array([holder is None for holder in holders], bool), moved)

    def wanted(self) -> bool:
        """Return whether somebody waits for labels of this process; any thread may ask."""
        mine = self._mine
        return mine is not None and mine.wanted.exists()

    def release(self) -> None:
        """Let go of all claims: the labels are on disk now, or never will be."""
        mine, self._mine = self._mine, None
        if mine is None:
            return
        try:
            with self._alone() as lock:
                releases = _count(lock)
                if releases == self._releases:  # no news but this process's own
                    self._releases += 1
                os.pwrite(lock.fileno(), (releases + 1).to_bytes(8, "little"), 0)
                mine.remove()
        except OSError as error:
            self._excuse(error)
        finally:
            mine.close()  # what is locked no longer is nobody's

    @contextmanager
    def _alone(self) -> Iterator[FileIO]:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with FileIO(descriptor, "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock

    def _look(self, lock: FileIO) -> bool:
        """See what others have claimed; tell whether they let go of something."""
        releases, before = _count(lock), self._releases
        self._releases = releases
        moved = releases != before
        mine = None if self._mine is None else self._mine.path.name
        files = [path for path in self._folder.iterdir() if path.suffix == ".claim"]
        here = {path.name: path for path in files if path.name != mine}
        self._others = {name: each for name, each in self._others.items() if name in here}
        for name, path in here.items():
            other = self._others.setdefault(name, _Claim(path))
            if not other.read():
                # What it has written before it died is on disk; the rest is anybody's.
                del self._others[name]
                other.remove()
                moved = True
        return moved

    def _holder(self, name: bytes) -> _Claim | None:
        return next((other for other in self._others.values() if name in other.keys), None)

    def _excuse(self, error: OSError) -> None:
        if error.errno not in (*FULL, *_NO_LOCKS):
            raise LabelError(
                f"label store: {self._folder} can't be written to, and labels are missing: "
                f"{explain(error)}"
            ) from error
        if not self._warned:
            self._warned = True
            logger.warning(
                "label store: %s can't hold claims (%s); what several runs want at the same time "
                "may be computed more than once",
                self._folder,
                error,
            )


def _count(lock: FileIO) -> int:
    return int.from_bytes(os.pread(lock.fileno(), 8, 0), "little")


def _split(content: bytes) -> set[bytes]:
    return {content[i : i + _KEY_BYTES] for i in range(0, len(content), _KEY_BYTES)}
