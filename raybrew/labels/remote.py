"""Where a store is: a folder, or a file system of pyarrow's that is read through a local cache.

    fetch ──► in the cache? ──► map it
                 │ no
                 ▼
              whole file ──► cache, under a temporary name, then renamed

    publish ──► written in the cache ──► uploaded ──► renamed in the cache

An object store shows an object when it is whole, so it is put under its final name. Any other file
system gets it under a temporary name, then moves it.
"""

import errno
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs
import xxhash

from raybrew.config.section import is_uri, user_path
from raybrew.data.files import map_file
from raybrew.errors import ConfigError, StoreFullError
from raybrew.labels.location import (
    DAMAGED,
    TEMPORARY,
    LocalLocation,
    Location,
    StoredFile,
    file_type,
)
from raybrew.labels.maintenance import evict

if TYPE_CHECKING:
    from raybrew.config import LabelConfig

logger = logging.getLogger(__name__)

_OBJECT_STORES = ("s3", "gcs", "abfs")
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class StoreSpec:
    """A label store, as every process of a run knows it; survives pickling.

    Args:
        root: a folder, or a URI that `pyarrow.fs.FileSystem.from_uri` reads.
        cache: folder of the copies of a remote store's files.
        max_bytes: how large a local store may grow; None for any size.
        cache_max_bytes: how large the folder of the cache may grow; None for any size.
        on_full: whether a full store ends the run, or labels that don't fit are dropped.
        since: when the run began, seconds since 1970; files used since then are never evicted.
    """

    root: str
    cache: str = "~/.cache/raybrew/remote-labels"
    max_bytes: int | None = None
    cache_max_bytes: int | None = None
    on_full: Literal["stop", "go_on"] = "stop"
    since: float = field(default_factory=time.time)

    @staticmethod
    def of(labels: "LabelConfig") -> "StoreSpec":
        """Return the store of a job, for a run that begins now."""
        root = labels.store
        if not is_uri(root):
            root = os.path.abspath(user_path(root, "labels.store"))
        return StoreSpec(
            root=root,
            cache=os.path.abspath(user_path(labels.cache, "labels.cache")),
            max_bytes=labels.max_bytes,
            cache_max_bytes=labels.cache_max_bytes,
            on_full=labels.on_full,
        )


def location_of(spec: StoreSpec) -> Location:
    """Return where a store's files lie.

    Raises:
        ConfigError: it is a URI that no file system can be opened by.
    """
    if not is_uri(spec.root):
        return LocalLocation(Path(spec.root).expanduser())
    shown = _without_secrets(spec.root)
    try:
        filesystem, base = pafs.FileSystem.from_uri(spec.root)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(
            f"labels.store: expected a folder, or the URI of a bucket or share that can be reached "
            f"(s3://, gs://, abfs://, hdfs://, file://), got {shown}: {error}"
        ) from error
    if isinstance(filesystem, pafs.LocalFileSystem):
        return LocalLocation(Path(base))
    if not base:
        scheme = spec.root.partition("://")[0]
        raise ConfigError(
            f"labels.store: expected a URI with a bucket or folder, such as "
            f"{scheme}://bucket/labels, got none after {scheme}://"
        )
    return RemoteLocation(filesystem, base, shown, spec)


class RemoteLocation(Location):
    """Files of a `pyarrow.fs` file system.

    Args:
        filesystem: any but that of this machine.
        base: path of the store in it.
        root: the store's name, for messages and for its part of the cache.
        spec: where the cache is and how large it may be.
    """

    listing_s = 5.0

    def __init__(self, filesystem: pafs.FileSystem, base: str, root: str, spec: StoreSpec):
        self.cache = LocalLocation(Path(spec.cache).expanduser(), is_cache=True)
        super().__init__(root, self.cache.local / xxhash.xxh3_128_hexdigest(root.encode()))
        self._copies = LocalLocation(self.local)
        self._filesystem, self._spec = filesystem, spec
        self._base = ("/" if base.startswith("/") else "") + base.strip("/")

    def _list(self, folder: str) -> list[StoredFile]:
        selector = pafs.FileSelector(self._path(folder), allow_not_found=True, recursive=True)
        # Some file systems begin their paths with a slash, whatever they were asked with.
        start = self._base.strip("/") + "/"
        found = []
        for info in self._filesystem.get_file_info(selector):
            if info.type == pafs.FileType.File:
                path = info.path.lstrip("/").removeprefix(start)
                used_s = (info.mtime_ns or 0) / 1e9  # 0 where the file system has no times
                found.append(StoredFile(path, info.size, used_s, file_type(path)))
        return found

    def fetch(self, path: str) -> Path:
        """See `Location`."""
        if not self._copies.fetch(path).exists():
            self._copies.publish(path, lambda file: self._download(path, file))
            self._trim()
        return self._copies.fetch(path)

    def forget(self, path: str) -> bool:
        """See `Location`."""
        self._copies.remove(path)
        return True

    def publish(self, path: str, write: Callable[[Path], None]) -> None:
        """See `Location`."""

        def write_and_upload(temporary: Path) -> None:
            write(temporary)
            self._upload(temporary, path)

        self._copies.publish(path, write_and_upload)
        self._trim()

    def set_aside(self, path: str) -> None:
        """See `Location`."""
        self._copies.remove(path)
        target = self._path(path)
        try:
            self._filesystem.move(target, target + DAMAGED)
        except OSError:
            # Another process was faster; not every file system says so in its own words.
            if self._filesystem.get_file_info(target).type != pafs.FileType.NotFound:
                raise

    def remove(self, path: str) -> None:
        """See `Location`."""
        self._copies.remove(path)
        with suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(path))

    def open(self, path: str) -> pa.NativeFile:
        """See `Location`."""
        return self._filesystem.open_input_file(self._path(path))

    def _path(self, path: str) -> str:
        return f"{self._base}/{path}" if path else self._base

    def _trim(self) -> None:
        try:
            evict(self.cache, 0, self._spec.cache_max_bytes, self._spec.since)
        except StoreFullError:
            logger.warning(
                "cache of labels %s: this run alone reads more than cache_max_bytes, %d bytes; it "
                "is larger until the run is over",
                self.cache.root,
                self._spec.cache_max_bytes,
            )

    def _download(self, path: str, target: Path) -> None:
        with (
            self._filesystem.open_input_file(self._path(path)) as source,
            target.open("wb") as to,
        ):
            shutil.copyfileobj(source, to, _CHUNK_BYTES)
            # A transfer that ends early doesn't mean that the file is damaged.
            if to.tell() != source.size():
                got = f"got {to.tell()} of {source.size()} bytes"
                raise OSError(errno.EIO, f"the transfer broke off: {got}", path)

    def _upload(self, source: Path, path: str) -> None:
        target = self._path(path)
        if any(name in self._filesystem.type_name for name in _OBJECT_STORES):
            self._put(source, target)
            return
        temporary = f"{target}.{uuid.uuid4().hex}{TEMPORARY}"
        self._filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        try:
            self._put(source, temporary)
            self._filesystem.move(temporary, target)
        except BaseException:
            with suppress(OSError):
                self._filesystem.delete_file(temporary)
            raise

    def _put(self, source: Path, target: str) -> None:
        # In one call: a stream that is closed halfway shows half a file.
        content = map_file(source).read_buffer()
        with self._filesystem.open_output_stream(target) as to:
            to.write(content)


def _without_secrets(uri: str) -> str:
    parts = urlsplit(uri)
    # What stands before the @ is a password, but a container with abfs.
    host = parts.netloc if parts.scheme == "abfs" else parts.netloc.rpartition("@")[2]
    shown = [(k, v) for k, v in parse_qsl(parts.query) if k == "endpoint_override"]
    return urlunsplit((parts.scheme, host, parts.path, urlencode(shown), ""))


def check_store(labels: "LabelConfig") -> None:
    """Refuse a store that can't be used, before anything is computed for it.

    A local store, and the cache of a remote one, has to be a folder, or a place for one.

    Raises:
        ConfigError: names the field.
    """
    location = location_of(StoreSpec.of(labels))
    if isinstance(location, LocalLocation):
        _check_folder("labels.store", location.local)
    elif isinstance(location, RemoteLocation):
        _check_folder("labels.cache", location.cache.local)


def _check_folder(what: str, folder: Path) -> None:
    try:
        # A read-only folder is accepted: it may have every label that is needed.
        if folder.is_dir():
            return
        if folder.exists() or "\0" in str(folder):
            raise ConfigError(f"{what}: expected a folder, got {str(folder)!r}, which is none")
        there = next(parent for parent in folder.parents if parent.exists())
        with tempfile.TemporaryDirectory(prefix=".raybrew-", dir=there):
            pass
    except OSError as error:
        raise ConfigError(
            f"{what}: expected a folder, or where one can be made, got {str(folder)!r}: {error}"
        ) from error
