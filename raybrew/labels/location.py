"""Where the files of a store lie: a folder of this machine, or any file system of pyarrow's.

    Location ──┬── LocalLocation    mapped where they lie
               └── RemoteLocation   (remote.py) read through a cache on this machine

Paths are relative to the store, with `/` between their parts:

    <teacher>/manifest.json                          manifest
    <teacher>/<signal>/shard-<random>.arrow          shard
                       shard-<random>.arrow.damaged  damaged
                       merge.lock                    lock
              …/<shard or manifest>.<random>.tmp     temporary

Files of other names or depths belong to other programs, and are never touched.
"""

import errno
import fcntl
import os
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from raybrew.data.files import explain
from raybrew.errors import LabelError

FileType = Literal["manifest", "shard", "damaged", "lock", "temporary"]

DAMAGED = ".damaged"
TEMPORARY = ".tmp"
LOCK = ".lock"
_RANDOM = "[0-9a-f]{32}"
_PATTERNS: dict[FileType, str] = {
    "manifest": r"[^/]+/manifest\.json",
    "shard": rf"[^/]+/[^/]+/shard-{_RANDOM}\.arrow",
    "damaged": rf"[^/]+/[^/]+/shard-{_RANDOM}\.arrow\.damaged",
    "lock": r"[^/]+/[^/]+/merge\.lock",
    "temporary": rf"[^/]+/(manifest\.json|[^/]+/shard-{_RANDOM}\.arrow)\.{_RANDOM}\.tmp",
}
MAX_LISTINGS = 20
TOUCH_S = 30.0
"""A use that follows another one so soon isn't recorded."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of the operating system when there is no space left."""


def file_type(path: str) -> FileType | None:
    """Return what a file is by its path in the store; None for what isn't the store's."""
    return next((t for t, pattern in _PATTERNS.items() if re.fullmatch(pattern, path)), None)


@dataclass(frozen=True)
class StoredFile:
    """A file of a store.

    Args:
        path: relative to the store.
        nbytes: its size.
        used_s: when it was last written or, in a folder of this machine, first read by a
            process; seconds since 1970.
        type: None for a file that isn't the store's.
    """

    path: str
    nbytes: int
    used_s: float
    type: FileType | None

    @property
    def name(self) -> str:
        """Its name alone."""
        return self.path.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The folder that it lies in."""
        return self.path.rpartition("/")[0]

    @property
    def teacher(self) -> str:
        """Fingerprint of the teacher whose folder it lies in."""
        return self.path.partition("/")[0]


def checked_name(name: str) -> str:
    """Return the name of a folder of a store, if it can't lead out of it.

    Raises:
        LabelError: it could.
    """
    if not name or name.startswith(".") or set(name) & set("/\\\0") or len(name.encode()) > 255:
        raise LabelError(
            f"label store: expected a teacher or signal without a slash that doesn't start with a "
            f"dot, of at most 255 bytes, got {name!r}"
        )
    return name


@contextmanager
def label_errors(store: str) -> Iterator[None]:
    """Turn what the system refuses into an error of the store; its files are left as they are.

    Args:
        store: its folder or URI.

    Raises:
        LabelError: names the limit or the right that is missing.
    """
    try:
        yield
    except OSError as error:
        fewer = f", or have fewer files: raybrew store prune {store} --merge"
        raise LabelError(
            f"label store {store}: {explain(error)}{fewer if error.errno == errno.ENOMEM else ''}"
        ) from error


class Location(ABC):
    """The files of a store.

    Every method raises OSError where the system refuses, and FileNotFoundError where a file to be
    read isn't there.

    Args:
        root: the store's folder or URI, for messages.
        local: folder of this machine for locks and times of use; for a local store itself.

    Attributes:
        listing_s: a listing is good for so long, seconds.
    """

    listing_s = 0.0

    def __init__(self, root: str, local: Path):
        self.root, self.local = root, local

    def files(self, folder: str = "") -> list[StoredFile]:
        """Return all files below a folder, sorted by path; none if it isn't there.

        A listing isn't taken at one moment: it may miss a file that appears and the files that it
        replaces. So listings are repeated until two in a row agree.
        """
        seen = self._list(folder)
        for _ in range(MAX_LISTINGS):
            again = self._list(folder)
            if {file.path for file in again} == {file.path for file in seen}:
                break
            seen = again
        return sorted(seen, key=lambda file: file.path)

    def shards(self, folder: str = "") -> list[StoredFile]:
        """Return the shards below a folder; no other file of a store is ever opened as one."""
        return [file for file in self.files(folder) if file.type == "shard"]

    @abstractmethod
    def _list(self, folder: str) -> list[StoredFile]: ...

    @abstractmethod
    def fetch(self, path: str) -> Path:
        """Return where this machine can map a file."""

    @abstractmethod
    def forget(self, path: str) -> bool:
        """Drop this machine's copy, which may be damaged; False if there is only the file."""

    @abstractmethod
    def publish(self, path: str, write: Callable[[Path], None]) -> None:
        """Have a file written elsewhere, and make it visible once it is whole.

        On an error nothing is left behind.
        """

    @abstractmethod
    def set_aside(self, path: str) -> None:
        """Rename a file to `.damaged`, if it is still there."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Delete a file, if it is still there."""

    @abstractmethod
    def open(self, path: str) -> pa.NativeFile:
        """Open a file to read parts of it."""

    def lease_folder(self, path: str) -> Path:
        """Return a hidden folder for the leases of processes; its files aren't the store's."""
        return self.local / path

    def touch(self, path: str, used_s: float | None = None) -> None:
        """Record when a file was used, now if left out, where that can be recorded."""
        target = self.local / path
        try:
            if used_s is not None:
                os.utime(target, (used_s, used_s))
            elif target.stat().st_mtime < time.time() - TOUCH_S:
                os.utime(target)
        except OSError as error:
            # Deleted since; or a read-only store, which serves as well.
            if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS):
                raise

    @contextmanager
    def exclusive(self, path: str) -> Iterator[bool]:
        """Lock this path among the processes that share `local`; False where another holds it."""
        target = self.local / (path + LOCK)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # held by another process, or a file system without locks
                yield False
                return
            yield True


class LocalLocation(Location):
    """A folder of this machine, or one that it has mounted.

    Args:
        base: the folder.
        is_cache: whether it holds copies of remote stores, each in a folder of its own.
    """

    def __init__(self, base: Path, *, is_cache: bool = False):
        super().__init__(str(base), base)
        self._is_cache = is_cache

    def _list(self, folder: str) -> list[StoredFile]:
        found = []
        for parent, inside, names in os.walk(self.local / folder, onerror=_raise_unless_missing):
            # The root of a disk has a lost+found, which is the administrator's alone.
            inside[:] = [n for n in inside if not n.startswith(".") and n != "lost+found"]
            for name in names:
                place = Path(parent, name)
                with suppress(FileNotFoundError):  # deleted since
                    status = place.lstat()
                    path = place.relative_to(self.local).as_posix()
                    type_ = self._type_of(path)
                    found.append(StoredFile(path, status.st_size, status.st_mtime, type_))
        return found

    def _type_of(self, path: str) -> FileType | None:
        if not self._is_cache:
            return file_type(path)
        store, _, rest = path.partition("/")
        return file_type(rest) if re.fullmatch(_RANDOM, store) else None

    def fetch(self, path: str) -> Path:
        """See `Location`."""
        return self.local / path

    def forget(self, path: str) -> bool:
        """See `Location`."""
        return False

    def publish(self, path: str, write: Callable[[Path], None]) -> None:
        """See `Location`."""
        target = self.local / path
        temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}{TEMPORARY}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            temporary.rename(target)
        finally:
            with suppress(OSError):  # after a success there is none
                temporary.unlink(missing_ok=True)

    def set_aside(self, path: str) -> None:
        """See `Location`."""
        target = self.local / path
        with suppress(FileNotFoundError):  # another process was faster
            target.rename(target.with_name(target.name + DAMAGED))

    def remove(self, path: str) -> None:
        """See `Location`."""
        (self.local / path).unlink(missing_ok=True)

    def open(self, path: str) -> pa.NativeFile:
        """See `Location`."""
        return pa.OSFile(str(self.local / path), "rb")


def _raise_unless_missing(error: OSError) -> None:
    # A folder that can't be listed isn't empty.
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
