"""Files: every flipped byte and every cut is found, and says so."""

import errno
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest

from raybrew.errors import LabelError
from raybrew.labels.location import LocalLocation
from raybrew.labels.payload import Payload
from raybrew.labels.shards import DamagedShardError, Shard, open_shard, write_shard
from tests.labels.stores import logits, make_keys

RAGGED = Payload(np.arange(5, dtype=np.int16), np.array([0, 2, 2, 5], np.int64))


def written(folder: Path, payload: Payload) -> Path:
    path = write_shard(
        LocalLocation(folder), "t/s", make_keys(1, 2, 3), payload, teacher="t", signal="s"
    )
    return folder / path


def opened(path: Path) -> Shard:
    shard = open_shard(path, teacher="t", signal="s")
    shard.verify()
    return shard


def content(shard: Shard) -> tuple[bytes, ...]:
    offsets = b"" if shard.payload.offsets is None else shard.payload.offsets.tobytes()
    values = shard.payload.values
    return shard.keys.tobytes(), values.tobytes(), str(values.dtype).encode(), offsets


@pytest.mark.parametrize("payload", [logits(1, 2, 3), RAGGED], ids=["dense", "ragged"])
def test_a_flipped_byte_anywhere_is_found_or_changes_nothing(tmp_path, payload):
    path = written(tmp_path, payload)
    whole, expected = path.read_bytes(), content(opened(path))
    harmless = 0
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x5A
        # A file of its own: the last one is still mapped.
        path = tmp_path / f"{place}.arrow"
        path.write_bytes(changed)
        try:
            found = content(opened(path))
        except DamagedShardError:
            continue
        assert found == expected
        harmless += 1
    # Arrow fills up between its parts; the rest of the file is looked at.
    assert harmless < len(whole) / 2


@pytest.mark.parametrize("payload", [logits(1, 2, 3), RAGGED], ids=["dense", "ragged"])
def test_a_file_cut_anywhere_is_found(tmp_path, payload):
    whole = written(tmp_path, payload).read_bytes()
    for length in range(0, len(whole), 7):
        path = tmp_path / f"{length}.arrow"
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedShardError, match=path.name):
            opened(path)


def test_an_arrow_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.arrow"
    table = pa.table({"key": ["a"], "value": [1]})
    with ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DamagedShardError, match="expected keys and lists of numbers"):
        opened(path)
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "none.arrow")


def test_what_cant_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = written(tmp_path, logits(1, 2, 3))

    def refuse(path: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(pa, "memory_map", refuse)
    with pytest.raises(LabelError, match=r"can't be read.*Too many open files") as caught:
        opened(path)
    assert not isinstance(caught.value, DamagedShardError)


def test_the_same_bytes_read_in_another_way_are_another_content(tmp_path):
    # Where the type in the file is changed to one of the same width, no byte of the data differs.
    path = written(tmp_path, logits(1, 2, 3))
    with ipc.open_file(str(path)) as reader:
        schema, batch = reader.schema, reader.get_batch(0)
    assert isinstance(batch.column(1), pa.FixedSizeListArray)
    numbers = batch.column(1).values.view(pa.int32())
    other = pa.RecordBatch.from_arrays(
        [batch.column(0), pa.FixedSizeListArray.from_arrays(numbers, 2)],
        schema=pa.schema(
            [("key", pa.binary(16)), ("value", pa.list_(pa.int32(), 2))], metadata=schema.metadata
        ),
    )
    changed = tmp_path / "changed.arrow"
    with ipc.new_file(str(changed), other.schema) as writer:
        writer.write_batch(other)
    with pytest.raises(DamagedShardError, match="expected checksum"):
        opened(changed)
