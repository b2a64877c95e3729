"""Files: every flipped byte and every cut is found, and says so."""

import errno
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest

from raybrew.data.payload import Payload
from raybrew.labels.location import LocalLocation
from raybrew.labels.shards import (
    DamagedShardError,
    Shard,
    UnusableShardError,
    read_label_count,
    write_shard,
)
from tests.labels.stores import logits, make_keys

RAGGED = Payload(np.arange(5, dtype=np.int16), np.array([0, 2, 2, 5], np.int64))


def written(folder: Path, payload: Payload) -> Path:
    path = write_shard(LocalLocation(folder), "t/s", make_keys(1, 2, 3), payload)
    return folder / path


def opened(path: Path) -> Shard:
    shard = Shard(path, "t/s")
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
        except UnusableShardError:
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


# As pyarrow raises them: where the map is refused, the system's words have no number.
@pytest.mark.parametrize(
    ("refusal", "number"),
    [
        (OSError(errno.EMFILE, "Too many open files"), errno.EMFILE),
        (OSError("Memory mapping file failed: Cannot allocate memory"), errno.ENOMEM),
        (OSError("Memory mapping file failed: No such device"), errno.ENODEV),
        (OSError("no words of the system's"), errno.EIO),
    ],
)
def test_what_the_system_refuses_to_map_is_not_called_damaged(
    tmp_path, monkeypatch, refusal, number
):
    path = written(tmp_path, logits(1, 2, 3))

    def refuse(path: str) -> None:
        raise refusal

    monkeypatch.setattr(pa, "memory_map", refuse)
    with pytest.raises(OSError, match=str(refusal.args[-1])) as caught:
        opened(path)
    assert caught.value.errno == number


def test_memory_that_runs_out_while_a_shard_is_opened_is_not_called_damage(tmp_path, monkeypatch):
    path = written(tmp_path, logits(1, 2, 3))

    def refuse(source: pa.NativeFile) -> None:
        raise pa.ArrowMemoryError("malloc of size 4096 failed")

    monkeypatch.setattr(ipc, "open_file", refuse)
    with pytest.raises(OSError, match="Cannot allocate memory") as caught:
        opened(path)
    assert caught.value.errno == errno.ENOMEM


class Failing(io.BytesIO):
    """A file whose device fails."""

    def read(self, nbytes: int | None = -1) -> bytes:
        raise OSError(errno.EIO, "Input/output error")


def test_a_header_that_cant_be_read_is_not_called_damaged(tmp_path):
    path = written(tmp_path, logits(*range(1, 4)))
    assert read_label_count("s", pa.OSFile(str(path), "rb")) == 3
    with pytest.raises(OSError, match="Input/output error"):
        read_label_count("s", pa.PythonFile(Failing(path.read_bytes()), "r"))


def test_the_header_of_a_large_file_is_read_from_its_end(tmp_path):
    path = written(tmp_path, Payload(np.zeros((3, 100_000), np.float32)))
    source = pa.OSFile(str(path), "rb")
    assert read_label_count("s", source) == 3
    assert source.tell() == 0
    cut = tmp_path / "cut.arrow"
    cut.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedShardError, match="not a whole Arrow file"):
        read_label_count("s", pa.OSFile(str(cut), "rb"))


def test_a_file_of_two_batches_is_no_shard(tmp_path):
    path = written(tmp_path, logits(1, 2, 3))
    with ipc.open_file(str(path)) as reader:
        batch = reader.get_batch(0)
    twice = tmp_path / "twice.arrow"
    with ipc.new_file(str(twice), batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    with pytest.raises(DamagedShardError, match="expected 1 record batch, got 2"):
        opened(twice)


def test_a_header_of_another_version_is_refused_whatever_it_counts(tmp_path):
    path = written(tmp_path, logits(1, 2, 3))
    path.write_bytes(path.read_bytes().replace(b"raybrew-labels-2", b"raybrew-labels-3"))
    with pytest.raises(UnusableShardError, match=r"got raybrew-labels-3") as caught:
        read_label_count("s", pa.OSFile(str(path), "rb"))
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
