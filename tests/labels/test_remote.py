"""Stores behind pyarrow file systems: in memory, in a folder below another one, S3's manners."""

import errno
import io
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from raybrew.data.payload import Payload, Signal
from raybrew.errors import ConfigError, LabelError
from raybrew.labels.contents import store_stats, verify_store
from raybrew.labels.location import LocalLocation
from raybrew.labels.maintenance import TOO_MANY
from raybrew.labels.remote import RemoteLocation, StoreSpec, location_of
from raybrew.labels.store import LabelStore, SignalStore
from tests.labels.stores import make_keys, remote_store, shard_files, values, write


class Unreachable(pafs.FSSpecHandler):
    """A share whose files can be listed and not be read."""

    def open_input_file(self, path: str) -> Any:
        raise OSError(errno.ETIMEDOUT, "Connection timed out")


def in_memory() -> pafs.FileSystem:
    """A file system that shows a file under its name from the first byte on."""
    memory = MemoryFileSystem()
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    return pafs.PyFileSystem(pafs.FSSpecHandler(memory))


def below(folder: Path) -> pafs.FileSystem:
    (folder / "share").mkdir()
    return pafs.SubTreeFileSystem(str(folder / "share"), pafs.LocalFileSystem())


@pytest.fixture(params=["memory", "share"])
def filesystem(request, tmp_path) -> pafs.FileSystem:
    return in_memory() if request.param == "memory" else below(tmp_path)


def opened(filesystem: pafs.FileSystem, cache: Path, **spec: Any) -> SignalStore:
    return remote_store(filesystem, cache, **spec).signal("t", Signal())


def remote_files(filesystem: pafs.FileSystem) -> list[str]:
    selector = pafs.FileSelector("bucket", recursive=True)
    files = [info for info in filesystem.get_file_info(selector) if info.is_file]
    return [info.path.lstrip("/") for info in files]


def cached(cache: Path) -> list[Path]:
    return shard_files(cache)


def test_labels_travel_through_the_remote_to_another_machine(filesystem, tmp_path):
    write(opened(filesystem, tmp_path / "here"), 1, 2)
    (path,) = remote_files(filesystem)
    assert path.startswith("bucket/labels/t/")
    there = opened(filesystem, tmp_path / "there")
    assert values(there, 2, 1) == [2, 1]
    assert len(cached(tmp_path / "there")) == 1


def test_what_was_read_once_is_not_read_from_the_remote_again(filesystem, tmp_path):
    write(opened(filesystem, tmp_path / "here"), 1)
    values(opened(filesystem, tmp_path / "there"), 1)
    (path,) = remote_files(filesystem)
    with filesystem.open_output_stream(path) as stream:
        stream.write(b"something else")
    for cache in ("here", "there"):
        assert values(opened(filesystem, tmp_path / cache), 1) == [1]


def test_a_remote_is_listed_again_after_a_while_or_when_asked_to(filesystem, tmp_path, monkeypatch):
    store = opened(filesystem, tmp_path / "here")
    write(opened(filesystem, tmp_path / "there"), 1)
    monkeypatch.setattr(RemoteLocation, "listing_s", 3600.0)
    store.refresh()
    assert not store.contains(make_keys(1)).any()
    store.refresh(now=True)
    assert store.contains(make_keys(1)).all()


def test_a_damaged_copy_is_fetched_again_and_the_remote_file_kept(filesystem, tmp_path, caplog):
    cache = tmp_path / "cache"
    write(opened(filesystem, cache), 1, 2)
    (copy,) = cached(cache)
    content = bytearray(copy.read_bytes())
    content[content.rindex(np.float32(2.5).tobytes())] ^= 1
    for damaged in (bytes(content), content[:-8], b""):
        copy.write_bytes(damaged)
        assert values(opened(filesystem, cache), 1, 2) == [1, 2]
    assert len(remote_files(filesystem)) == 1
    assert "set aside" not in caplog.text


def test_a_damaged_remote_file_is_set_aside_and_its_labels_written_again(
    filesystem, tmp_path, caplog
):
    write(opened(filesystem, tmp_path / "here"), 1, 2)
    write(opened(filesystem, tmp_path / "here"), 3)
    (path,) = [
        p
        for p in remote_files(filesystem)
        if np.float32(2.5).tobytes() in filesystem.open_input_file(p).read()
    ]
    content = filesystem.open_input_file(path).read()
    with filesystem.open_output_stream(path) as stream:
        stream.write(content.replace(np.float32(2.5).tobytes(), np.float32(9.5).tobytes()))
    there = opened(filesystem, tmp_path / "there")
    found, _ = there.read(make_keys(1, 2, 3))
    assert found.tolist() == [False, False, True]
    assert path.rpartition("/")[2] in caplog.text
    assert path + ".damaged" in remote_files(filesystem)
    assert path not in remote_files(filesystem)
    write(there, 1, 2)
    assert values(opened(filesystem, tmp_path / "third"), 1, 2, 3) == [1, 2, 3]


def test_a_remote_that_doesnt_answer_is_an_error_and_nothing_is_set_aside(tmp_path):
    filesystem = in_memory()
    write(opened(filesystem, tmp_path / "here"), 1)
    broken = pafs.PyFileSystem(Unreachable(MemoryFileSystem()))
    with pytest.raises(LabelError, match=r"label store .*timed out.*network share"):
        opened(broken, tmp_path / "there")
    assert not [path for path in remote_files(filesystem) if path.endswith(".damaged")]
    assert not [path for path in (tmp_path / "there").rglob("*") if path.is_file()]


def test_a_remote_that_fails_while_a_damaged_copy_is_fetched_again_costs_no_label(
    tmp_path, monkeypatch
):
    filesystem = in_memory()
    store = opened(filesystem, tmp_path)
    write(store, 1, 2)
    (copy,) = cached(tmp_path)
    content = copy.read_bytes()
    store = opened(filesystem, tmp_path)
    copy.write_bytes(content.replace(np.float32(2.5).tobytes(), np.float32(9.5).tobytes()))

    def refuse(location: RemoteLocation, path: str, target: Path) -> None:
        raise OSError(errno.ETIMEDOUT, "Connection timed out")

    with monkeypatch.context() as patch:
        patch.setattr(RemoteLocation, "_download", refuse)
        with pytest.raises(LabelError, match="timed out"):
            store.contains(make_keys(1, 2))
    assert values(store, 1, 2) == [1, 2]
    assert len(remote_files(filesystem)) == 1


class Torn(pafs.FSSpecHandler):
    """A share whose files end early, and say nothing."""

    def open_input_file(self, path: str) -> Any:
        class Half(io.BytesIO):
            def read(self, nbytes: int | None = -1) -> bytes:
                left = max(0, whole // 2 - self.tell())
                return super().read(left if nbytes is None or nbytes < 0 else min(nbytes, left))

        content = self.fs.cat_file(path)
        whole = len(content)
        return pa.PythonFile(Half(content), "r")


def test_a_transfer_that_breaks_off_is_no_damage_of_the_remote_file(tmp_path):
    filesystem = in_memory()
    write(opened(filesystem, tmp_path / "here"), 1)
    torn = pafs.PyFileSystem(Torn(MemoryFileSystem()))
    with pytest.raises(LabelError, match=r"transfer broke off: got \d+ of \d+ bytes"):
        opened(torn, tmp_path / "there")
    (path,) = remote_files(filesystem)
    assert not path.endswith(".damaged")
    assert not [path for path in (tmp_path / "there").rglob("*") if path.is_file()]


def test_what_isnt_the_caches_own_is_neither_counted_nor_evicted(tmp_path):
    filesystem = in_memory()
    cache = tmp_path / "cache"
    foreign = [cache / "other.bin", cache / "docs" / f"t/s/shard-{0:032x}.arrow"]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10_000 if path.suffix == ".arrow" else b"x")
        os.utime(path, (1e9, 1e9))
    write(remote_store(filesystem, tmp_path / "here").signal("a", Signal()), *range(100))
    write(remote_store(filesystem, tmp_path / "here").signal("b", Signal()), *range(100))
    size = cached(tmp_path / "here")[0].stat().st_size
    for teacher in ("a", "b"):
        spec = {"cache_max_bytes": 2 * size, "since": time.time() + 3600}
        store = remote_store(filesystem, cache, **spec).signal(teacher, Signal())
        assert values(store, 7) == [7]
    assert len(cached(cache)) == 3
    assert all(path.exists() for path in foreign)


def test_the_cache_stays_within_its_size_and_keeps_what_the_run_reads(tmp_path, caplog):
    filesystem = in_memory()
    for number in range(4):
        store = remote_store(filesystem, tmp_path / "here").signal(f"t{number}", Signal())
        write(store, *range(number, number + 100))
    size = cached(tmp_path / "here")[0].stat().st_size
    # Runs that began an hour after each other: to the later ones the earlier files are old.
    for number in range(4):
        spec = {"cache_max_bytes": 2 * size, "since": time.time() + 3600}
        store = remote_store(filesystem, tmp_path / "there", **spec).signal(f"t{number}", Signal())
        assert values(store, number) == [number]
        assert len(cached(tmp_path / "there")) <= 2
    assert "reads more than" not in caplog.text
    for number in range(4):
        spec = {"cache_max_bytes": 2 * size, "since": time.time() - 3600}
        store = remote_store(filesystem, tmp_path / "third", **spec).signal(f"t{number}", Signal())
        assert values(store, number) == [number]
    assert len(cached(tmp_path / "third")) == 4
    assert "this run alone reads more than cache_max_bytes" in caplog.text


def test_small_shards_of_a_remote_are_merged(filesystem, tmp_path):
    store = opened(filesystem, tmp_path / "here")
    for number in range(TOO_MANY + 3):
        write(store, number)
    assert len(remote_files(filesystem)) < TOO_MANY
    everything = list(range(TOO_MANY + 3))
    assert values(store, *everything) == everything
    assert values(opened(filesystem, tmp_path / "there"), *everything) == everything


def test_an_upload_that_fails_leaves_nothing_behind(tmp_path):
    class Full(pafs.FSSpecHandler):
        def move(self, src: str, dest: str) -> None:
            raise OSError(errno.EIO, "upload failed")

    memory = MemoryFileSystem()
    memory.store.clear()
    filesystem = pafs.PyFileSystem(Full(memory))
    store = opened(filesystem, tmp_path)
    store.append(make_keys(1), Payload(np.zeros((1, 2), np.float32)))
    with pytest.raises(LabelError, match=r"could not be written.*upload failed"):
        store.flush()
    assert remote_files(filesystem) == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert store.contains(make_keys(1)).all()


def test_a_remote_store_is_looked_through_and_checked(filesystem, tmp_path):
    store = remote_store(filesystem, tmp_path / "here")
    write(store.signal("t", Signal()), 1, 2)
    location = remote_store(filesystem, tmp_path / "there").location
    (stats,) = store_stats(location)
    assert (stats.labels, stats.shards, stats.damaged) == (2, 1, 0)
    assert not cached(tmp_path / "there"), "heads alone are read"
    assert verify_store(location, lambda file: None) == []
    (path,) = remote_files(filesystem)
    with filesystem.open_output_stream(path) as stream:
        stream.write(b"cut short")
    (wrong,) = verify_store(location, lambda file: None)
    assert path.removeprefix("bucket/labels/") in wrong


def test_what_another_one_deleted_first_is_no_trouble(filesystem, tmp_path):
    location = remote_store(filesystem, tmp_path / "here").location
    path = f"t/s/shard-{0:032x}.arrow"
    location.remove(path)
    location.set_aside(path)
    location.touch(path)
    with pytest.raises(FileNotFoundError):
        location.fetch(path)
    assert location.files() == []


@pytest.mark.parametrize("uri", ["file://{}", "{}"])
def test_a_file_uri_is_a_folder(tmp_path, uri):
    location = location_of(StoreSpec(uri.format(tmp_path)))
    assert isinstance(location, LocalLocation)
    assert location.local == tmp_path
    write(LabelStore(uri.format(tmp_path)).signal("t", Signal()), 1)
    assert len(shard_files(tmp_path)) == 1


def test_a_uri_of_pyarrows_is_a_remote(tmp_path):
    location = location_of(StoreSpec("mock:///somewhere", cache=str(tmp_path)))
    assert isinstance(location, RemoteLocation)
    store = LabelStore(StoreSpec("x"), location).signal("t", Signal())
    write(store, 1)
    assert values(store, 1) == [1]


@pytest.mark.parametrize("uri", ["nosuch://bucket/labels", "s3:// /", "://"])
def test_a_uri_that_no_file_system_takes_is_refused(uri):
    with pytest.raises(ConfigError, match=r"labels\.store: expected a folder, or the URI"):
        location_of(StoreSpec(uri))


def test_secrets_of_a_uri_are_not_shown():
    with pytest.raises(ConfigError) as caught:
        location_of(StoreSpec("nosuch://user:secret@bucket/labels?session_token=hidden"))
    shown = str(caught.value).partition(", got ")[2].partition(": ")[0]
    assert shown == "nosuch://bucket/labels"


@pytest.mark.parametrize("name", ["../t", "/t", "a/b", "..", "", ".hidden", "a\0b", "x" * 300])
def test_names_cant_lead_out_of_a_store(tmp_path, name):
    with pytest.raises(LabelError, match="expected a teacher or signal without a slash"):
        LabelStore(tmp_path).signal(name, Signal())


@pytest.mark.parametrize("name", ["../t", "/t", "a/b", "..", ".hidden", "a\0b"])
def test_names_of_signals_cant_either(tmp_path, name):
    with pytest.raises(LabelError, match="expected a teacher or signal without a slash"):
        LabelStore(tmp_path).signal("t", Signal(name))
