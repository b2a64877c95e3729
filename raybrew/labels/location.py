"""Where the files of a store lie: a folder of this machine, or any file system of pyarrow's.

    Location ──┬── LocalLocation    mapped where they lie
               └── RemoteLocation   (remote.py) read through a folder of this machine

Paths are relative to the store, with `/` between their parts.
"""

import errno
import fcntl
import os
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from raybrew.data.files import explain
from raybrew.errors import LabelError

DAMAGED = ".damaged"
TEMPORARY = ".tmp"
LOCK = ".lock"
MAX_LISTINGS = 20
TOUCH_S = 30.0
"""Used so lately that it need not be noted again: whoever reads the file looks at it anew then."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What an operating system calls having no room."""
_SHARD = re.compile(r"shard-[0-9a-f]{32}\.arrow")


@dataclass(frozen=True)
class StoredFile:
    """A file of a store.

    Args:
        path: relative to the store.
        nbytes: its size.
        used_s: when it was last written or, in a folder of this machine, first read by a
            process; seconds since 1970.
    """

    path: str
    nbytes: int
    used_s: float

    @property
    def name(self) -> str:
        """Its name alone."""
        return self.path.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """What it lies in."""
        return self.path.rpartition("/")[0]


def is_shard(name: str) -> bool:
    """Return whether a file of this name is a shard: no other name of a store is ever opened."""
    return _SHARD.fullmatch(name) is not None


def is_set_aside(name: str) -> bool:
    """Return whether a file of this name was a shard, and set aside as damaged."""
    return name.endswith(DAMAGED) and is_shard(name.removesuffix(DAMAGED))


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

    Args:
        root: the store's folder or URI, for messages.

    Attributes:
        listing_s: a listing is good for so long, seconds.
    """

    listing_s = 0.0

    def __init__(self, root: str):
        self.root = root

    def files(self, folder: str = "") -> list[StoredFile]:
        """Return all files below a folder; none if it isn't there.

        A listing isn't taken at one moment: it may miss a file that came and those that went for
        it, so it is taken until two in a row agree.

        Raises:
            OSError: the system refuses to list them; there may be some.
        """
        seen = self._list(folder)
        for _ in range(MAX_LISTINGS):
            again = self._list(folder)
            if {file.path for file in again} == {file.path for file in seen}:
                break
            seen = again
        return seen

    def shards(self, folder: str = "") -> list[StoredFile]:
        """Return the shards below a folder."""
        return [file for file in self.files(folder) if is_shard(file.name)]

    @abstractmethod
    def _list(self, folder: str) -> list[StoredFile]: ...

    @abstractmethod
    def fetch(self, path: str) -> Path:
        """Return where this machine can map a file.

        Raises:
            FileNotFoundError: it is gone.
            OSError: it can't be read.
        """

    @abstractmethod
    def forget(self, path: str) -> bool:
        """Drop a copy of this machine's that may be damaged; False if there is only the file."""

    @abstractmethod
    def publish(self, path: str, write: Callable[[Path], None]) -> None:
        """Have a file written elsewhere, and let it be seen once it is whole.

        Raises:
            OSError: it can't be written; nothing stays behind.
        """

    @abstractmethod
    def set_aside(self, path: str) -> None:
        """Rename a file to `.damaged`, if it is still there."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Delete a file, if it is still there."""

    @abstractmethod
    def touch(self, path: str, used_s: float | None = None) -> None:
        """Note when a file was used, now if left out, where that can be noted."""

    @abstractmethod
    def beside(self, path: str) -> Path:
        """Return a hidden folder for what processes tell each other; no file of the store."""

    @abstractmethod
    def exclusive(self, path: str) -> AbstractContextManager[bool]:
        """Enter as the only one on this path, or with False where another one is in."""

    @abstractmethod
    def open(self, path: str) -> pa.NativeFile:
        """Open a file to look at parts of it.

        Raises:
            FileNotFoundError: it is gone.
            OSError: it can't be read.
        """


class LocalLocation(Location):
    """A folder of this machine, or one that it has mounted."""

    def __init__(self, base: Path):
        super().__init__(str(base))
        self.base = base

    def _list(self, folder: str) -> list[StoredFile]:
        found = []
        for parent, inside, names in os.walk(self.base / folder, onerror=_raise_unless_gone):
            # The root of a disk has a lost+found, which is the administrator's alone.
            inside[:] = [n for n in inside if not n.startswith(".") and n != "lost+found"]
            for name in names:
                path = Path(parent, name)
                with suppress(FileNotFoundError):  # gone since
                    status = path.lstat()
                    relative = path.relative_to(self.base).as_posix()
                    found.append(StoredFile(relative, status.st_size, status.st_mtime))
        return sorted(found, key=lambda file: file.path)

    def fetch(self, path: str) -> Path:
        """See `Location`."""
        return self.base / path

    def forget(self, path: str) -> bool:
        """See `Location`."""
        return False

    def publish(self, path: str, write: Callable[[Path], None]) -> None:
        """See `Location`."""
        target = self.base / path
        temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}{TEMPORARY}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            temporary.rename(target)
        finally:
            # It is gone where all went well.
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def set_aside(self, path: str) -> None:
        """See `Location`."""
        target = self.base / path
        with suppress(FileNotFoundError):  # another process was faster
            target.rename(target.with_name(target.name + DAMAGED))

    def remove(self, path: str) -> None:
        """See `Location`."""
        (self.base / path).unlink(missing_ok=True)

    def touch(self, path: str, used_s: float | None = None) -> None:
        """See `Location`."""
        target = self.base / path
        try:
            if used_s is not None:
                os.utime(target, (used_s, used_s))
            elif target.stat().st_mtime < time.time() - TOUCH_S:
                os.utime(target)
        except OSError as error:
            # Gone since; or a store that may only be read, which serves as well.
            if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS):
                raise

    def beside(self, path: str) -> Path:
        """See `Location`."""
        return self.base / path

    @contextmanager
    def exclusive(self, path: str) -> Iterator[bool]:
        """See `Location`."""
        target = self.base / (path + LOCK)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # held by another one, or a file system without locks
                yield False
                return
            yield True

    def open(self, path: str) -> pa.NativeFile:
        """See `Location`."""
        return pa.OSFile(str(self.base / path), "rb")


def _raise_unless_gone(error: OSError) -> None:
    # What can't be listed is not empty.
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
