"""One file of labels: keys and values of many examples, checksummed, immutable.

    shard-<random>.arrow   Arrow IPC, one record batch
        key    fixed_size_binary[16]      content key
        value  fixed_size_list<dtype>[w]  or large_list<dtype> where rows are ragged
    schema metadata: format version, teacher, signal, xxh3 of the buffers

A shard is written under a temporary name and renamed when it is whole and on disk, so that no
reader ever sees half of one. It is read by memory map; the checksum is verified the first time
that a process takes values from it.
"""

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import xxhash

from raybrew.errors import LabelError
from raybrew.labels.payload import Payload

__all__ = ["FORMAT", "Shard", "open_shard", "write_shard"]

FORMAT = "raybrew-labels-1"
KEY_BYTES = 16


@dataclass
class Shard:
    """An open shard.

    Args:
        path: its file.
        keys: uint64 (n, 2), read-only.
        payload: the values, read-only views of the memory map.
        checksum: what the buffers should hash to.
        verified: whether they were seen to.
    """

    path: Path
    keys: np.ndarray
    payload: Payload
    checksum: str
    verified: bool = False

    def verify(self) -> None:
        """Check the values against the checksum, once.

        Raises:
            LabelError: they differ.

        """
        if not self.verified:
            found = _checksum(self.keys, self.payload)
            if found != self.checksum:
                raise LabelError(
                    f"shard {self.path}: expected checksum {self.checksum}, got {found}"
                )
            self.verified = True


def write_shard(
    folder: Path, keys: np.ndarray, payload: Payload, *, teacher: str, signal: str
) -> Path:
    """Write labels as a new shard of the folder.

    Args:
        folder: folder of the (teacher, signal), made if it isn't there.
        keys: uint64 (n, 2).
        payload: n rows.
        teacher: fingerprint of the teacher.
        signal: name of the signal.

    Returns:
        The shard's path.

    Raises:
        LabelError: it can't be written, e.g. the disk is full; nothing stays behind.

    """
    checksum = _checksum(keys, payload)
    metadata = {"format": FORMAT, "teacher": teacher, "signal": signal, "checksum": checksum}
    table = _to_batch(keys, payload, metadata)
    path = folder / f"shard-{uuid.uuid4().hex}.arrow"
    temporary = path.with_suffix(".tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            with ipc.new_file(file, table.schema) as writer:
                writer.write_batch(table)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LabelError(
            f"label store {folder}: {len(keys)} labels could not be written: {error}"
        ) from error
    return path


def open_shard(path: Path, *, teacher: str, signal: str) -> Shard:
    """Map a shard into memory.

    Raises:
        LabelError: it is damaged, or of another version, teacher or signal.

    """
    try:
        with pa.memory_map(str(path)) as source:
            reader = ipc.open_file(source)
            metadata = {k.decode(): v.decode() for k, v in (reader.schema.metadata or {}).items()}
            batch = reader.get_batch(0)
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise LabelError(f"shard {path}: not a whole Arrow file: {error}") from error
    expected = {"format": FORMAT, "teacher": teacher, "signal": signal}
    found = {name: metadata.get(name) for name in expected}
    if found != expected:
        raise LabelError(f"shard {path}: expected {expected}, got {found}")
    keys, payload = _from_batch(batch)
    return Shard(path, keys, payload, metadata["checksum"])


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
    digest = xxhash.xxh3_128(np.ascontiguousarray(keys).view(np.uint8).data)
    digest.update(np.ascontiguousarray(payload.values).view(np.uint8).data)
    if payload.offsets is not None:
        digest.update(np.ascontiguousarray(payload.offsets).view(np.uint8).data)
    return digest.hexdigest()
