"""Small shards are merged while others read and write."""

import os
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from raybrew.labels import merging
from raybrew.labels.location import LocalLocation
from raybrew.labels.merging import TOO_MANY, merge_small
from raybrew.labels.payload import Payload, Signal
from raybrew.labels.store import LabelStore
from tests.labels.stores import make_keys, open_store, shard_files, values, write

FOLDER = f"t/{Signal().name}"


def merge(folder: Path, at_least: int = 2) -> int:
    location = LocalLocation(folder)
    return merge_small(location, FOLDER, teacher="t", signal=Signal().name, at_least=at_least)


def test_a_store_that_was_flushed_often_has_few_shards(tmp_path):
    store = open_store(tmp_path)
    for number in range(5 * TOO_MANY):
        write(store, number)
        assert len(shard_files(tmp_path)) < TOO_MANY
    assert values(store, *range(5 * TOO_MANY)) == list(range(5 * TOO_MANY))
    assert len(open_store(tmp_path)) == 5 * TOO_MANY


def test_labels_that_two_shards_hold_are_kept_once(tmp_path):
    for part in ((1, 2), (2, 3), (3, 1)):
        write(open_store(tmp_path), *part)
    assert merge(tmp_path) == 3
    assert len(shard_files(tmp_path)) == 1
    merged = open_store(tmp_path)
    assert len(merged) == 3
    assert values(merged, 1, 2, 3) == [1, 2, 3]


def test_ragged_labels_are_merged(tmp_path):
    store = LabelStore(tmp_path).signal("t", Signal())
    for number in range(3):
        row = np.arange(number, dtype=np.float32)
        store.append(make_keys(number), Payload(row, np.array([0, number], np.int64)))
        store.flush()
    assert merge(tmp_path) == 3
    _, payload = open_store(tmp_path).read(make_keys(2, 0, 1))
    assert payload is not None
    assert payload.offsets is not None
    assert payload.offsets.tolist() == [0, 2, 2, 3]
    assert payload.values.tolist() == [0, 1, 0]


def test_a_reader_goes_on_with_what_it_has_mapped(tmp_path):
    for number in range(4):
        write(open_store(tmp_path), number)
    reader = open_store(tmp_path)
    merge(tmp_path)
    assert values(reader, *range(4)) == [0, 1, 2, 3]
    reader.refresh()
    assert values(reader, *range(4)) == [0, 1, 2, 3]
    assert len(reader) == 4


def test_large_shards_few_shards_and_damaged_ones_are_left_alone(tmp_path, monkeypatch, caplog):
    for number in range(4):
        write(open_store(tmp_path), number)
    assert merge(tmp_path, at_least=5) == 0
    broken = shard_files(tmp_path)[0]
    broken.write_bytes(broken.read_bytes()[:-9])
    assert merge(tmp_path) == 3
    assert broken.exists()
    monkeypatch.setattr(merging, "SMALL_BYTES", 1)
    assert merge(tmp_path, at_least=1) == 0
    assert len(open_store(tmp_path)) == 3
    assert broken.name in caplog.text


def test_wrong_bytes_get_no_right_checksum_by_being_merged(tmp_path):
    for number in range(3):
        write(open_store(tmp_path), number)
    (broken,) = [p for p in shard_files(tmp_path) if np.float32(1.5).tobytes() in p.read_bytes()]
    wrong = broken.read_bytes().replace(np.float32(1.5).tobytes(), np.float32(9.5).tobytes())
    broken.write_bytes(wrong)
    assert merge(tmp_path) == 2
    assert broken.read_bytes() == wrong
    found, payload = open_store(tmp_path).read(make_keys(0, 1, 2))
    assert found.tolist() == [True, False, True]
    assert payload is not None
    assert payload.values[:, 0].tolist() == [0, 2]


@pytest.mark.parametrize("whole", [0, 1])
def test_where_less_than_two_are_whole_nothing_is_merged(tmp_path, whole):
    for number in range(3):
        write(open_store(tmp_path), number)
    for path in shard_files(tmp_path)[whole:]:
        path.write_bytes(path.read_bytes()[:-9])
    before = shard_files(tmp_path)
    assert merge(tmp_path) == 0
    assert shard_files(tmp_path) == before


def test_a_merged_shard_was_used_when_the_last_used_of_its_parts_was(tmp_path):
    for number in range(3):
        write(open_store(tmp_path), number)
    now = time.time()
    for path, hours in zip(shard_files(tmp_path), (3, 1, 2), strict=True):
        os.utime(path, (now - hours * 3600, now - hours * 3600))
    assert merge(tmp_path, at_least=3) == 3
    (path,) = shard_files(tmp_path)
    assert path.stat().st_mtime == pytest.approx(now - 3600, abs=1)


def test_merged_shards_stay_below_a_size(tmp_path, monkeypatch):
    for number in range(6):
        write(open_store(tmp_path), number)
    monkeypatch.setattr(merging, "_MERGED_BYTES", 2 * shard_files(tmp_path)[0].stat().st_size)
    assert merge(tmp_path) == 6
    assert len(shard_files(tmp_path)) == 3
    assert values(open_store(tmp_path), *range(6)) == list(range(6))


def test_only_one_merges_at_a_time(tmp_path):
    for number in range(3):
        write(open_store(tmp_path), number)
    with LocalLocation(tmp_path).exclusive(f"{FOLDER}/merge") as mine:
        assert mine
        assert merge(tmp_path) == 0
    assert merge(tmp_path) == 3


def write_and_merge(folder: Path, first: int) -> None:
    store = open_store(folder)
    for number in range(first, first + 60):
        write(store, number)
        # What this process wrote it finds at any moment, whoever merges it.
        assert store.contains(make_keys(*range(first, number + 1))).all()
        assert open_store(folder).contains(make_keys(*range(first, number + 1))).all()


def test_nothing_is_missing_at_any_moment_while_several_processes_write_and_merge(tmp_path):
    context = get_context("spawn")
    writers = [context.Process(target=write_and_merge, args=(tmp_path, n)) for n in (0, 100, 200)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(240)
        assert writer.exitcode == 0
    expected = [n for first in (0, 100, 200) for n in range(first, first + 60)]
    assert values(open_store(tmp_path), *expected) == expected
    assert len(shard_files(tmp_path)) < 4 * TOO_MANY
    assert not list(tmp_path.rglob("*.tmp"))
