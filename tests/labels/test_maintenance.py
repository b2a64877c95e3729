import logging
import os
import resource
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from raybrew.data.payload import Payload, Signal
from raybrew.errors import LabelError, StoreFullError
from raybrew.labels import maintenance
from raybrew.labels.location import LocalLocation, StoredFile
from raybrew.labels.maintenance import TOO_MANY, compact, evictable
from raybrew.labels.store import LabelStore
from tests.labels.stores import logits, make_keys, open_store, shard_files, values, write

# Small shards are merged while others read and write.

FOLDER = f"t/{Signal().name}"


def merge(folder: Path, at_least: int = 2) -> int:
    location = LocalLocation(folder)
    return compact(location, FOLDER, at_least=at_least)


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
    monkeypatch.setattr(maintenance, "SMALL_BYTES", 1)
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
    monkeypatch.setattr(
        maintenance, "_COMPACTED_BYTES", 2 * shard_files(tmp_path)[0].stat().st_size
    )
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


@pytest.mark.long
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


# The greatest size of a store, and a disk that is full.

HOUR_S = 3600.0
NAMES = [f"t/s/shard-{n:032x}.arrow" for n in range(4)]


def file(number: int, nbytes: int, used_s: float) -> StoredFile:
    return StoredFile(NAMES[number], nbytes, used_s, "shard")


def test_what_was_not_read_for_longest_goes_first_and_no_more_than_it_takes():
    files = [file(0, 10, 300.0), file(1, 10, 100.0), file(2, 10, 200.0)]
    assert evictable(files, 0, since=1e9) == []
    assert evictable(files, 1, since=1e9) == [files[1]]
    assert evictable(files, 11, since=1e9) == [files[1], files[2]]
    assert evictable(files, 31, since=1e9) is None


def test_what_was_used_since_the_run_began_stays():
    files = [file(0, 10, 1000.0), file(1, 10, 5000.0)]
    assert evictable(files, 10, since=4000.0) == [files[0]]
    assert evictable(files, 11, since=4000.0) is None


def test_damaged_files_go_before_any_label_and_strangers_never():
    damaged = StoredFile(NAMES[0] + ".damaged", 10, 9000.0, "damaged")
    stranger = StoredFile("t/manifest.json", 10, 0.0, "manifest")
    files = [stranger, file(1, 10, 1.0), damaged]
    assert evictable(files, 10, since=1e9) == [damaged]
    assert evictable(files, 21, since=1e9) is None


def used_ago(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_store_stays_within_its_size_and_keeps_what_was_read_last(tmp_path):
    for number, hours in ((1, 3), (2, 5), (3, 4)):
        write(open_store(tmp_path, f"t{number}"), *range(number, number + 200))
        (path,) = shard_files(tmp_path / f"t{number}")
        used_ago(path, hours * HOUR_S)
    size = path.stat().st_size
    # Reading counts as use: the oldest one is now the newest.
    assert values(open_store(tmp_path, "t2"), 2) == [2]
    bounded = open_store(tmp_path, "t4", max_bytes=3 * size + size // 2)
    write(bounded, *range(4, 204))
    held = {n for n in range(1, 5) if shard_files(tmp_path / f"t{n}")}
    assert held == {1, 2, 4}
    assert values(bounded, 4) == [4]


def test_what_isnt_the_stores_own_is_neither_counted_nor_evicted(tmp_path):
    foreign = [
        tmp_path / "data.parquet",
        tmp_path / "t" / "notes.bin",
        tmp_path / "backup" / NAMES[0],  # a copy of a store, too deep to be part of this one
        tmp_path / "backup" / (NAMES[1] + ".damaged"),
        tmp_path / NAMES[2].rpartition("/")[2],
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10_000)
        used_ago(path, HOUR_S)
    write(open_store(tmp_path, "old"), *range(200))
    used_ago(shard_files(tmp_path / "old")[0], HOUR_S)
    size = shard_files(tmp_path / "old")[0].stat().st_size
    bounded = open_store(tmp_path, max_bytes=3 * size)
    write(bounded, *range(200))
    assert len(shard_files(tmp_path / "old")) == 1
    write(bounded, *range(200, 400))
    assert not shard_files(tmp_path / "old")
    assert all(path.stat().st_size == 10_000 for path in foreign)


def test_looking_for_labels_counts_as_use(tmp_path):
    write(open_store(tmp_path), 1)
    (path,) = shard_files(tmp_path)
    used_ago(path, HOUR_S)
    store = open_store(tmp_path)
    assert not store.contains(make_keys(2)).any()
    assert path.stat().st_mtime < time.time() - HOUR_S / 2
    assert store.contains(make_keys(1)).all()
    assert path.stat().st_mtime > time.time() - HOUR_S / 2


def test_use_is_noted_twice_a_minute_at_most(tmp_path):
    # Who has verified a shard does so again where its time changed.
    location = LocalLocation(tmp_path)
    path = tmp_path / "file"
    path.touch()
    for seconds, noted in ((5, False), (60, True)):
        used_ago(path, seconds)
        before = path.stat().st_mtime
        location.touch("file")
        assert (path.stat().st_mtime > before) == noted


def test_a_bound_that_the_run_itself_exceeds_is_a_full_store(tmp_path):
    store = open_store(tmp_path, max_bytes=4000)
    write(store, 1)
    before = shard_files(tmp_path)
    with pytest.raises(StoreFullError, match=r"greatest size, 4,000 bytes.*labels\.max_bytes"):
        write(store, *range(2, 100))
    assert shard_files(tmp_path) == before
    assert values(store, 1, 50) == [1, 50]


def test_going_on_without_storing_is_counted_logged_and_bounded_in_memory(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("raybrew.labels.store.FLUSH_BYTES", 500)
    store = open_store(tmp_path, max_bytes=1, on_full="go_on")
    for start in range(0, 200, 10):
        store.append(make_keys(*range(start, start + 10)), logits(*range(start, start + 10)))
        assert values(store, start, start + 9) == [start, start + 9]
    store.flush()
    assert store.unstored == 200
    assert len(store) <= 2 * 500 / 24 + 10
    assert not shard_files(tmp_path)
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "200 labels of teacher t are not stored" in errors[-1].getMessage()
    assert not store.contains(make_keys(0)).any()


def test_labels_are_stored_again_once_there_is_room(tmp_path):
    store = open_store(tmp_path, max_bytes=1, on_full="go_on")
    write(store, 1)
    assert store.unstored == 1
    store._spec = open_store(tmp_path)._spec
    write(store, 2)
    assert store.unstored == 0
    store.append(make_keys(3), logits(3))  # not written yet, which isn't for want of room
    assert store.unstored == 0
    assert values(open_store(tmp_path), 1, 2) == [1, 2]


FILLS_A_DISK = """
import sys
import numpy as np
from pathlib import Path
from raybrew.errors import StoreFullError
from raybrew.data.payload import Payload
from tests.labels.stores import make_keys, open_store

folder, on_full = Path(sys.argv[1]), sys.argv[2]
store = open_store(folder, on_full=on_full)
big = np.zeros((1, 100_000), np.float32)
written = 0
try:
    for number in range(8):
        store.append(make_keys(number), Payload(big + number))
        store.flush()
        written += not store.unstored
except StoreFullError as error:
    print(error)
files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
again = open_store(folder)
found, payload = again.read(make_keys(*range(8)))
whole = payload is None or (payload.values[:, 0] == np.flatnonzero(found)).all()
print(f"written={written} unstored={store.unstored} files={len(files)} found={found.sum()} {whole}")
print("readable", store.contains(make_keys(written)).all())
"""


def run_in_small_disk(folder: Path, on_full: str) -> str:
    """Run the script on a disk of 1 MB, in a mount namespace of its own."""
    script = f"exec {sys.executable} -c '{FILLS_A_DISK}' {folder} {on_full}"
    mount = f"mount -t tmpfs -o size=1m none {folder}"
    return run(["unshare", "-Urm", "sh", "-c", f"{mount} && {script}"])


def run_with_small_files(folder: Path, on_full: str) -> str:
    """Run the script in a process that may write no file of more than 1 kB."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    return run([sys.executable, "-c", FILLS_A_DISK, str(folder), on_full], limit)


def run(command: list[str], before=None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=before)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_full_disk_stops_with_an_error_and_no_half_shard(tmp_path):
    output = run_in_small_disk(tmp_path, "stop")
    assert "No space left on device" in output
    assert "written=2 unstored=0 files=2 found=2 True" in output
    assert "readable True" in output


def test_a_full_disk_is_passed_over_where_the_store_says_so(tmp_path):
    output = run_in_small_disk(tmp_path, "go_on")
    assert "written=2 unstored=6 files=2 found=2 True" in output
    assert "going on without storing" in output


def test_a_file_size_limit_is_a_full_disk(tmp_path):
    output = run_with_small_files(tmp_path, "go_on")
    assert "written=0 unstored=8 files=0 found=0 True" in output
    assert "File too large" in output


def test_another_trouble_with_the_disk_always_stops(tmp_path):
    (tmp_path / "t").write_text("a file where a folder has to be")
    store = open_store(tmp_path, on_full="go_on")
    store.append(make_keys(1), Payload(np.zeros((1, 1), np.float32)))
    with pytest.raises(LabelError, match="could not be written") as caught:
        store.flush()
    assert not isinstance(caught.value, StoreFullError)


def test_evicting_a_shard_that_another_process_took_first_is_no_trouble(tmp_path):
    location = LocalLocation(tmp_path)
    location.remove(NAMES[0])
    location.set_aside(NAMES[0])
    location.touch(NAMES[0])
    assert location.files() == []
