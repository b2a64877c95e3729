import errno
import os
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrew.data.payload import Payload, Signal
from raybrew.errors import LabelError
from raybrew.labels import shards
from raybrew.labels.store import KeyIndex, LabelStore
from tests.labels.stores import logits, make_keys, open_store, shard_files, values, write


def test_labels_are_there_at_once_for_the_writer_and_after_flush_for_others(tmp_path):
    writer, other = open_store(tmp_path), open_store(tmp_path)
    writer.append(make_keys(1, 2), logits(1, 2))
    assert values(writer, 2, 1) == [2, 1]
    other.refresh()
    assert not other.contains(make_keys(1, 2)).any()
    writer.flush()
    other.refresh()
    assert values(other, 2, 1, 2) == [2, 1, 2]
    assert values(open_store(tmp_path), 1) == [1]


def test_read_mixes_shards_and_fresh_labels_in_the_order_of_the_question(tmp_path):
    store = open_store(tmp_path)
    for part in ((5, 1), (4,), (2, 3)):
        store.append(make_keys(*part), logits(*part))
        if part != (2, 3):
            store.flush()
    found, payload = store.read(make_keys(3, 9, 1, 4, 5, 8, 2))
    assert found.tolist() == [True, False, True, True, True, False, True]
    assert payload is not None
    assert payload.values[:, 0].tolist() == [3, 1, 4, 5, 2]


def test_ragged_labels_survive_the_disk(tmp_path):
    payload = Payload(np.arange(5, dtype=np.int16), np.array([0, 2, 2, 5], np.int64))
    store = open_store(tmp_path)
    store.append(make_keys(1, 2, 3), payload)
    store.flush()
    _, back = open_store(tmp_path).read(make_keys(3, 1))
    assert back is not None
    assert back.values.tolist() == [2, 3, 4, 0, 1]
    assert back.values.dtype == np.int16
    assert back.offsets is not None
    assert back.offsets.tolist() == [0, 3, 5]


def test_teachers_and_signals_dont_see_each_other(tmp_path):
    store = open_store(tmp_path, "a")
    store.append(make_keys(1), logits(1))
    store.flush()
    assert not open_store(tmp_path, "b").contains(make_keys(1)).any()
    half = LabelStore(tmp_path).signal("a", Signal(dtype="float16"))
    assert not half.contains(make_keys(1)).any()


def test_labels_are_flushed_when_they_grow_large(tmp_path, monkeypatch):
    monkeypatch.setattr("raybrew.labels.store.FLUSH_BYTES", 100)
    store = open_store(tmp_path)
    store.append(make_keys(1), logits(1))
    assert not shard_files(tmp_path)
    store.append(make_keys(*range(2, 9)), logits(*range(2, 9)))
    assert len(shard_files(tmp_path)) == 1


def damage_flip(path: Path) -> None:
    # The last value of the payload: Arrow's own structure stays whole.
    data = bytearray(path.read_bytes())
    place = data.rindex(np.float32(2.5).tobytes())
    data[place] ^= 0x40
    path.write_bytes(data)


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_flip, damage_cut, damage_empty])
def test_a_damaged_shard_is_set_aside_and_its_labels_can_be_written_again(tmp_path, damage, caplog):
    store = open_store(tmp_path)
    store.append(make_keys(1, 2), logits(1, 2))
    store.flush()
    store.append(make_keys(3), logits(3))
    store.flush()
    (path,) = [p for p in shard_files(tmp_path) if np.float32(2.5).tobytes() in p.read_bytes()]
    damage(path)
    again = open_store(tmp_path)
    found, payload = again.read(make_keys(1, 2, 3))
    assert found.tolist() == [False, False, True]
    assert payload is not None
    assert payload.values[:, 0].tolist() == [3]
    assert path.name in caplog.text
    assert not path.exists()
    assert path.with_name(path.name + ".damaged").exists()
    again.append(make_keys(1, 2), logits(1, 2))
    again.flush()
    assert values(open_store(tmp_path), 1, 2, 3) == [1, 2, 3]


@pytest.mark.parametrize("damage", [damage_flip, damage_cut, damage_empty])
def test_a_shard_that_is_written_to_after_it_was_read_gives_no_wrong_label(tmp_path, damage):
    store = open_store(tmp_path)
    write(store, 1, 2)
    write(store, 3)
    first, second = open_store(tmp_path), open_store(tmp_path)
    assert values(first, 1, 2, 3) == values(second, 1, 2, 3) == [1, 2, 3]
    (path,) = [p for p in shard_files(tmp_path) if np.float32(2.5).tobytes() in p.read_bytes()]
    damage(path)
    # The second finds it set aside by the first, and has what is damaged mapped.
    for reader in (first, second):
        found, payload = reader.read(make_keys(1, 2, 3))
        assert found.tolist() == [False, False, True]
        assert payload is not None
        assert payload.values[:, 0].tolist() == [3]


def test_a_shard_that_is_damaged_and_then_deleted_gives_no_wrong_label(tmp_path):
    store = open_store(tmp_path)
    write(store, 1, 2)
    assert values(store, 1, 2) == [1, 2]
    (path,) = shard_files(tmp_path)
    damage_flip(path)
    path.unlink()
    assert not store.contains(make_keys(1, 2)).any()


def test_the_content_is_checked_once_and_again_when_the_file_was_changed(tmp_path, monkeypatch):
    write(open_store(tmp_path), 1)
    checked: list[int] = []
    checksum = shards._checksum

    def count(keys: np.ndarray, payload: Payload) -> str:
        checked.append(len(keys))
        return checksum(keys, payload)

    monkeypatch.setattr(shards, "_checksum", count)
    store = open_store(tmp_path)
    for _ in range(3):
        assert values(store, 1) == [1]
    assert checked == [1]
    (path,) = shard_files(tmp_path)
    os.utime(path, (1e9, 1e9))
    for _ in range(3):
        assert values(store, 1) == [1]
    assert checked == [1, 1]


def test_a_shard_that_was_touched_is_read_on(tmp_path):
    store = open_store(tmp_path)
    write(store, 1)
    assert values(store, 1) == [1]
    shard_files(tmp_path)[0].touch()
    assert values(store, 1) == [1]


def test_a_shard_deleted_while_it_is_open_goes_on_serving_and_then_is_missing(tmp_path):
    store = open_store(tmp_path)
    store.append(make_keys(1), logits(1))
    store.flush()
    shard_files(tmp_path)[0].unlink()
    assert values(store, 1) == [1]
    store.refresh()
    assert not store.contains(make_keys(1)).any()


def test_a_shard_of_another_teacher_is_refused(tmp_path):
    store = open_store(tmp_path, "a")
    store.append(make_keys(1), logits(1))
    store.flush()
    moved = tmp_path / "b" / Signal().name
    moved.mkdir(parents=True)
    source = shard_files(tmp_path)[0]
    source.rename(moved / source.name)
    assert not open_store(tmp_path, "b").contains(make_keys(1)).any()
    assert (moved / source.name).exists(), "it is whole, and serves where it belongs"


def test_a_shard_of_a_later_version_is_passed_over_and_stays_for_those_that_can_read_it(
    tmp_path, caplog
):
    store = open_store(tmp_path)
    write(store, 1, 2)
    (path,) = shard_files(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"raybrew-labels-2", b"raybrew-labels-3"))
    older = open_store(tmp_path)
    assert not older.contains(make_keys(1, 2)).any()
    assert "raybrew-labels-3" in caplog.text
    write(older, 1, 2)
    older.refresh()
    assert values(older, 1, 2) == [1, 2]
    assert path.exists()
    assert caplog.text.count(path.name) == 1


def test_a_full_disk_is_an_error_that_leaves_no_half_shard_and_loses_nothing(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    store.append(make_keys(1), logits(1))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "fsync", full)
        with pytest.raises(LabelError, match=r"1 labels could not be written.*No space"):
            store.flush()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert values(store, 1) == [1]
    store.flush()
    assert values(open_store(tmp_path), 1) == [1]


def write_many(folder: Path, first: int) -> None:
    store = open_store(folder)
    for start in range(first, first + 40, 4):
        numbers = tuple(range(start, start + 4))
        store.append(make_keys(*numbers), logits(*numbers))
        store.flush()
        store.refresh()


@pytest.mark.long
def test_writers_in_several_processes_dont_disturb_each_other(tmp_path):
    context = get_context("spawn")
    writers = [context.Process(target=write_many, args=(tmp_path, n)) for n in (1, 21, 101)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    expected = [*range(1, 61), *range(101, 141)]
    assert values(open_store(tmp_path), *expected) == expected


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=20), min_size=1, max_size=4))
def test_index_finds_what_is_there_and_nothing_else(numbers):
    parts = [make_keys(*part) for part in numbers]
    found, shard, row = KeyIndex(parts).find(make_keys(*range(1, 70)))
    there = {n for part in numbers for n in part}
    assert found.tolist() == [n in there for n in range(1, 70)]
    for n in there:
        assert numbers[shard[n - 1]][row[n - 1]] == n


def test_index_tells_keys_apart_that_share_their_first_half():
    keys = np.array([[7, 1], [7, 2], [7, 3], [9, 1], [9, 2]], np.uint64)
    asked = np.array([[7, 3], [7, 2], [7, 1], [7, 4], [9, 1], [9, 2], [9, 3]], np.uint64)
    found, _, row = KeyIndex([keys]).find(asked)
    assert found.tolist() == [True, True, True, False, True, True, False]
    assert row[found].tolist() == [2, 1, 0, 3, 4]
