"""One file of labels: keys and values of many examples, checksummed, immutable.

    shard-<random>.arrow   Arrow IPC, one record batch
        key    fixed_size_binary[16]      content key
        value  fixed_size_list<dtype>[w]  or large_list<dtype> where rows are ragged
    schema metadata: format version, teacher, signal, number of labels, xxh3 of the content

A shard is written under a temporary name and renamed when it is whole and on disk, so that no
reader ever sees half of one. It is read by memory map; the checksum is verified the first time that
a process looks for a label in it, and again if the file has changed since.
"""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import xxhash

from raybrew.data.files import explain, map_file
from raybrew.data.payload import Payload
from raybrew.errors import LabelError, StoreFullError
from raybrew.labels.location import DAMAGED, FULL, Location

FORMAT = "raybrew-labels-2"
KEY_BYTES = 16


_FOOTER_BYTES = 1 << 16
"""The end of a file that surely holds its footer; that of a shard has under 2 kB."""


class UnusableShardError(LabelError):
    """A file isn't the shard that its path promises; another version may be able to read it."""


class DamagedShardError(UnusableShardError):
    """The bytes of a file are wrong, so that no process can use it."""


class Shard:
    """A shard that is mapped into memory.

    Args:
        path: its file on this machine.
        folder: `<teacher fingerprint>/<signal>`, whose labels it has to hold.

    Attributes:
        keys: uint64 (n, 2), read-only.
        payload: the values, read-only views of the memory map.
        checksum: what the content should hash to.
        nbytes: size of the file.
        verified: whether it did.

    Raises:
        DamagedShardError: its bytes are wrong.
        UnusableShardError: it is of another version, teacher or signal.
        FileNotFoundError: it was deleted.
        OSError: the system refuses to have it read; it may be whole.
    """

    def __init__(self, path: Path, folder: str):
        self.path, self.nbytes = path, path.stat().st_size
        self.keys, self.payload, metadata = _read(path)
        expected = _identity(folder)
        found = {name: metadata.get(name) for name in expected}
        if found != expected:
            raise UnusableShardError(f"shard {path}: expected {expected}, got {found}")
        self.checksum = metadata.get("checksum", "none")
        self.verified = False
        self._changed_ns: int | None = None

    def verify(self) -> None:
        """Check the content against the checksum: once, and again if the file has changed since.

        A deleted file is still mapped, and can still be read.

        Raises:
            DamagedShardError: they differ, or another process has found that they do.
        """
        changed_ns = self._modified_ns()
        if self.verified and changed_ns == self._changed_ns:
            return
        found = _checksum(self.keys, self.payload)
        if found != self.checksum:
            raise DamagedShardError(
                f"shard {self.path}: expected checksum {self.checksum}, got {found}"
            )
        self.verified, self._changed_ns = True, changed_ns

    def _modified_ns(self) -> int | None:
        """Return when the file was last modified, None if it was deleted."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            if self.path.with_name(self.path.name + DAMAGED).exists():
                raise DamagedShardError(f"shard {self.path}: was set aside as damaged") from None
            return None
        if status.st_size != self.nbytes:
            # Checked before it is read: reading a map beyond the file's end kills the process.
            raise DamagedShardError(
                f"shard {self.path}: expected {self.nbytes} bytes, got {status.st_size}"
            )
        return status.st_mtime_ns


def write_shard(location: Location, folder: str, keys: np.ndarray, payload: Payload) -> str:
    """Write labels as a new shard of a folder.

    Args:
        location: the store.
        folder: `<teacher fingerprint>/<signal>`, created if it isn't there.
        keys: uint64 (n, 2).
        payload: n rows.

    Returns:
        The shard's path in the store.

    Raises:
        StoreFullError: there is no space for it; nothing is left behind.
        LabelError: it can't be written; nothing is left behind.
    """
    content = {"checksum": _checksum(keys, payload), "labels": str(len(keys))}
    table = _to_batch(keys, payload, _identity(folder) | content)
    path = f"{folder}/shard-{uuid.uuid4().hex}.arrow"

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            with ipc.new_file(file, table.schema) as writer:
                writer.write_batch(table)
            file.flush()
            os.fsync(file.fileno())

    try:
        location.publish(path, write)
    except OSError as error:
        error_type = StoreFullError if error.errno in FULL else LabelError
        raise error_type(
            f"label store {location.root}: {len(keys)} labels could not be written to {folder}: "
            f"{explain(error)}"
        ) from error
    return path


def read_label_count(name: str, source: pa.NativeFile) -> int:
    """Return how many labels a shard holds by its metadata; the labels are not read.

    Args:
        name: the shard, for messages.
        source: its file.

    Raises:
        DamagedShardError: its bytes are wrong.
        UnusableShardError: it is of another version.
        OSError: the system refuses to have it read.
    """
    # Read first, then parsed: Arrow's errors don't tell the two apart.
    nbytes = source.size()
    footer = source.read_at(min(nbytes, _FOOTER_BYTES), max(0, nbytes - _FOOTER_BYTES))
    with _wrong_bytes(name):
        metadata = _metadata(ipc.open_file(pa.BufferReader(footer)).schema)
    if metadata.get("format") != FORMAT:
        raise UnusableShardError(
            f"shard {name}: expected format {FORMAT}, got {metadata.get('format')}"
        )
    with _wrong_bytes(name):
        return int(metadata.get("labels", "none"))


def _identity(folder: str) -> dict[str, str]:
    teacher, signal = folder.split("/")
    return {"format": FORMAT, "teacher": teacher, "signal": signal}


def _read(path: Path) -> tuple[np.ndarray, Payload, dict[str, str]]:
    # Once the file is mapped, the system can refuse nothing but memory.
    with map_file(path) as source, _wrong_bytes(path):
        reader = ipc.open_file(source)
        metadata = _metadata(reader.schema)
        if reader.num_record_batches != 1:
            raise DamagedShardError(
                f"shard {path}: expected 1 record batch, got {reader.num_record_batches}"
            )
        batch = reader.get_batch(0)
        batch.validate()
        _check_columns(path, batch.schema)
        return *_from_batch(batch), metadata


@contextmanager
def _wrong_bytes(name: str | Path) -> Iterator[None]:
    """Report bytes that are in memory and that Arrow can't parse as damage."""
    try:
        yield
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(name)) from error
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DamagedShardError(f"shard {name}: not a whole Arrow file: {error}") from error


def _metadata(schema: pa.Schema) -> dict[str, str]:
    return {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}


def _check_columns(path: Path, schema: pa.Schema) -> None:
    types = [field.type for field in schema]
    if (
        schema.names != ["key", "value"]
        or types[0] != pa.binary(KEY_BYTES)
        or not (pa.types.is_fixed_size_list(types[1]) or pa.types.is_large_list(types[1]))
        or not pa.types.is_primitive(types[1].value_type)
    ):
        raise DamagedShardError(f"shard {path}: expected keys and lists of numbers, got {schema}")


def _to_batch(keys: np.ndarray, payload: Payload, metadata: dict[str, str]) -> pa.RecordBatch:
    key = pa.Array.from_buffers(
        pa.binary(KEY_BYTES), len(keys), [None, pa.py_buffer(np.ascontiguousarray(keys))]
    )
    flat = pa.array(np.ascontiguousarray(payload.values).reshape(-1))
    value: pa.Array
    if payload.offsets is None:
        value = pa.FixedSizeListArray.from_arrays(flat, payload.values.shape[1])
    else:
        value = pa.LargeListArray.from_arrays(pa.array(payload.offsets), flat)
    schema = pa.schema([("key", key.type), ("value", value.type)], metadata=dict(metadata))
    return pa.RecordBatch.from_arrays([key, value], schema=schema)


def _from_batch(batch: pa.RecordBatch) -> tuple[np.ndarray, Payload]:
    key, value = batch.column(0), batch.column(1)
    keys = np.frombuffer(key.buffers()[1], np.uint64).reshape(-1, 2)[: len(batch)]
    if isinstance(value, pa.FixedSizeListArray):
        flat = value.values.to_numpy(zero_copy_only=True)
        return keys, Payload(flat.reshape(len(batch), value.type.list_size))
    offsets = value.offsets.to_numpy(zero_copy_only=True)
    return keys, Payload(value.values.to_numpy(zero_copy_only=True), offsets)


def _checksum(keys: np.ndarray, payload: Payload) -> str:
    # The layout of the bytes is part of the content.
    ragged = payload.offsets is not None
    form = f"{payload.values.dtype.str} {payload.values.shape} {ragged} {len(keys)}"
    digest = xxhash.xxh3_128(form.encode())
    digest.update(np.ascontiguousarray(keys).view(np.uint8).data)
    digest.update(np.ascontiguousarray(payload.values).view(np.uint8).data)
    if payload.offsets is not None:
        digest.update(np.ascontiguousarray(payload.offsets).view(np.uint8).data)
    return digest.hexdigest()
