"""The greatest size of a store, and a disk that is full."""

import logging
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from raybrew.errors import LabelError, StoreFullError
from raybrew.labels.location import LocalLocation, StoredFile
from raybrew.labels.payload import Payload
from raybrew.labels.room import evictable
from tests.labels.stores import logits, make_keys, open_store, shard_files, values, write

HOUR_S = 3600.0
NAMES = [f"t/s/shard-{n:032x}.arrow" for n in range(4)]


def file(number: int, nbytes: int, used_s: float) -> StoredFile:
    return StoredFile(NAMES[number], nbytes, used_s)


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
    damaged = StoredFile(NAMES[0] + ".damaged", 10, 9000.0)
    stranger = StoredFile("t/manifest.json", 10, 0.0)
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
    assert "200 labels of teacher t are not kept" in errors[-1].getMessage()
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
from raybrew.labels.payload import Payload
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
