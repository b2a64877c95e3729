"""What the operating system refuses is an error that names the limit, and no file is touched."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from raybrew.data.files import explain
from raybrew.data.payload import Payload, Signal
from raybrew.errors import LabelError
from raybrew.labels.contents import read_manifest, store_stats, verify_store, write_manifest
from raybrew.labels.location import LocalLocation
from raybrew.labels.maintenance import compact
from raybrew.labels.shards import write_shard
from tests.labels.stores import logits, make_keys, open_store, shard_files, values, write
from tests.refusing import (
    FewMaps,
    drop_privileges,
    in_child,
    limit_address_space,
    limit_files,
    limited_maps,
)

FOLDER = f"t/{Signal().name}"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of 100 shards, with a label each, that every user may read."""
    for number in range(100):
        payload = logits(number)
        write_shard(LocalLocation(tmp_path), FOLDER, make_keys(number), payload)
    tmp_path.chmod(0o755)
    return tmp_path


def everything(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@limited_maps
def test_no_memory_map_left_is_no_damage(store):
    before = everything(store)

    def open_with_few_maps() -> tuple[str, list[float]]:
        with FewMaps(left=60), pytest.raises(LabelError) as caught:
            open_store(store)
        return str(caught.value), values(open_store(store), *range(100))

    message, found = in_child(open_with_few_maps)
    assert "Cannot allocate memory" in message
    assert "vm.max_map_count" in message
    assert f"raybrew store prune {store} --merge" in message
    assert everything(store) == before
    assert found == list(range(100))


@limited_maps
def test_a_store_that_runs_out_of_maps_while_it_is_open_serves_on(store):
    before = everything(store)

    def list_with_few_maps() -> tuple[str, list[float]]:
        opened = open_store(store)
        for number in range(100, 200):
            payload = logits(number)
            write_shard(LocalLocation(store), FOLDER, make_keys(number), payload)
        with FewMaps(left=60), pytest.raises(LabelError) as caught:
            opened.refresh()
        found = values(opened, *range(100))
        opened.refresh()
        return str(caught.value), found + values(opened, *range(100, 200))

    message, found = in_child(list_with_few_maps)
    assert "vm.max_map_count" in message
    assert set(before) <= set(everything(store))
    assert found == list(range(200))


def test_no_address_space_left_is_no_damage(tmp_path):
    for number in range(8):
        payload = Payload(np.full((1, 1 << 21), number, np.float32))
        write_shard(LocalLocation(tmp_path), FOLDER, make_keys(number), payload)
    before = everything(tmp_path)

    def open_in_little_space() -> str:
        limit_address_space(32 << 20)
        with pytest.raises(LabelError) as caught:
            open_store(tmp_path)
        return str(caught.value)

    message = in_child(open_in_little_space)
    assert "Cannot allocate memory" in message
    assert "ulimit -v" in message
    assert everything(tmp_path) == before


def test_no_file_handle_left_is_no_empty_store(store):
    before = everything(store)

    def open_without_handles() -> list[str]:
        opened = open_store(store)
        opened.append(make_keys(500), logits(500))
        limit_files()
        messages = []
        for work in (lambda: open_store(store), opened.refresh, opened.flush):
            with pytest.raises(LabelError) as caught:
                work()
            messages.append(str(caught.value))
        assert values(opened, *range(100), 500) == [*range(100), 500]
        return messages

    messages = in_child(open_without_handles)
    assert all("Too many open files" in message for message in messages), messages
    assert all("ulimit -n" in message for message in messages)
    assert everything(store) == before


@pytest.mark.parametrize("what", ["a shard", "the folder of the shards", "the folder of a teacher"])
def test_no_permission_is_neither_damage_nor_absence(store, what):
    before = everything(store)
    place = {
        "a shard": before[50],
        "the folder of the shards": store / FOLDER,
        "the folder of a teacher": store / "t",
    }[what]
    place.chmod(0)

    def open_without_privileges() -> list[str]:
        drop_privileges(store)
        location = LocalLocation(Path())
        messages = []
        for work in (
            lambda: open_store(Path()),
            lambda: compact(location, FOLDER),
        ):
            with pytest.raises(LabelError) as caught:
                work()
            messages.append(str(caught.value))
        for look in (lambda: store_stats(location), lambda: verify_store(location, lambda _: None)):
            with pytest.raises(OSError, match="Permission denied"):
                look()
        return messages

    messages = in_child(open_without_privileges)
    place.chmod(0o755)
    assert all("Permission denied" in message for message in messages)
    assert "give this user the right to" in messages[0]
    assert everything(store) == before
    assert values(open_store(store), *range(100)) == list(range(100))


def test_a_disk_s_lost_and_found_is_no_part_of_a_store(store):
    (store / "lost+found").mkdir(mode=0o700)

    def list_without_privileges() -> int:
        drop_privileges(store)
        return len(LocalLocation(Path()).files())

    assert in_child(list_without_privileges) == 100


def test_a_manifest_that_may_not_be_read_is_not_taken_for_none(tmp_path):
    location = LocalLocation(tmp_path)
    write_manifest(location, "t", teacher="a", model="m")
    tmp_path.chmod(0o755)
    (tmp_path / "t" / "manifest.json").chmod(0)

    def read_without_privileges() -> str:
        drop_privileges(tmp_path)
        with pytest.raises(OSError, match="Permission denied"):
            read_manifest(LocalLocation(Path()), "t")
        with pytest.raises(LabelError, match="can't be written to") as caught:
            write_manifest(LocalLocation(Path()), "t", teacher="a", model="m")
        return str(caught.value)

    assert "Permission denied" in in_child(read_without_privileges)


def test_labels_that_were_written_are_not_lost_where_shards_cant_be_merged(
    store, monkeypatch, caplog
):
    opened = open_store(store)

    def refuse(location: LocalLocation, path: str) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(LocalLocation, "exclusive", refuse)
    write(opened, 100)
    assert "small shards were not merged" in caplog.text
    assert values(open_store(store), *range(101)) == list(range(101))


def test_a_damaged_shard_whose_state_cant_be_seen_stays_in_the_store(store, monkeypatch):
    opened = open_store(store)
    victim = shard_files(store)[0]
    stat = Path.stat

    def refuse(path: Path, **options: bool) -> os.stat_result:
        if path == victim:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", refuse)
        with pytest.raises(LabelError, match=r"Stale file handle.*network share"):
            opened.contains(make_keys(*range(100)))
    assert victim.exists()
    assert values(opened, *range(100)) == list(range(100))


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOMEM, "vm.max_map_count"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.EACCES, "right to"),
        (errno.EROFS, "read-only"),
        (errno.ENOSPC, "make room"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EIO, "check the disk"),
    ],
)
def test_a_refusal_comes_with_advice(number, advice):
    message = explain(OSError(number, os.strerror(number), "/store/file"))
    assert message.startswith(f"[Errno {number}] {os.strerror(number)}: '/store/file'; ")
    assert advice in message


def test_a_refusal_that_has_no_advice_is_left_as_it_is():
    assert explain(OSError("something else")) == "something else"
