"""`raybrew store ls | verify | prune` on real stores."""

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest

from raybrew.labels.contents import read_manifest, write_manifest
from raybrew.labels.store import LabelStore
from tests.commands import raybrew
from tests.labels.stores import open_store, shard_files, values, write
from tests.refusing import drop_privileges, in_child

A_DAY_AGO = time.time() - 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two teachers: `aa11` with two shards of 3 labels, `bb22` with one of 100, used a day ago."""
    write(open_store(tmp_path, "aa11"), 1, 2)
    write(open_store(tmp_path, "aa11"), 3)
    write(open_store(tmp_path, "bb22"), *range(100))
    for path in shard_files(tmp_path / "bb22"):
        os.utime(path, (A_DAY_AGO, A_DAY_AGO))
    write_manifest(LabelStore(tmp_path).location, "aa11", teacher="a", model="runs/teacher-a")
    return tmp_path


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.rindex(np.float32(1.5).tobytes())] ^= 0xFF
    path.write_bytes(content)


def test_ls_names_teachers_signals_labels_and_bytes(store, capsys):
    assert raybrew("store", "ls", str(store)) == 0
    shown = capsys.readouterr().out
    for part in ("aa11", "runs/teacher-a", "bb22", "logits-float32", "103"):
        assert part in shown
    assert raybrew("store", "ls", str(store), "--json") == 0
    a, b = json.loads(capsys.readouterr().out)
    assert (a["teacher"], a["model"], a["labels"], a["shards"]) == ("aa11", "runs/teacher-a", 3, 2)
    assert (b["teacher"], b["model"], b["labels"], b["damaged"]) == ("bb22", "", 100, 0)
    assert b["nbytes"] == shard_files(store / "bb22")[0].stat().st_size


def test_ls_of_an_empty_store(tmp_path, capsys):
    assert raybrew("store", "ls", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_verify_names_every_damaged_file_and_touches_nothing(store, capsys):
    assert raybrew("store", "verify", str(store)) == 0
    assert "0 files damaged" in capsys.readouterr().out
    first, second = sorted(
        shard_files(store / "aa11"), key=lambda path: path.stat().st_size, reverse=True
    )
    flip(first)
    second.write_bytes(second.read_bytes()[:-1])
    before = sorted(store.rglob("*"))
    assert raybrew("store", "verify", str(store)) == 1
    shown = capsys.readouterr().out
    assert first.name in shown
    assert second.name in shown
    assert "2 files damaged" in shown
    assert "prune" in shown
    assert sorted(store.rglob("*")) == before


def test_what_was_set_aside_is_told_and_can_be_deleted(store, capsys):
    path = shard_files(store / "bb22")[0]
    path.write_bytes(b"broken")
    open_store(store, "bb22")
    assert raybrew("store", "verify", str(store)) == 1
    assert f"{path.name}.damaged: set aside" in capsys.readouterr().out
    assert raybrew("store", "ls", str(store), "--json") == 0
    assert json.loads(capsys.readouterr().out)[1]["damaged"] == 1
    assert raybrew("store", "prune", str(store), "--damaged") == 0
    assert "deleted 1 files, 6 bytes" in capsys.readouterr().out
    assert raybrew("store", "verify", str(store)) == 0


def test_prune_by_size_deletes_what_was_not_used_for_longest(store, capsys):
    total = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    assert raybrew("store", "prune", str(store), "--max-size", str(total - 1), "--dry-run") == 0
    assert "would delete 1 files" in capsys.readouterr().out
    assert len(shard_files(store)) == 3
    assert raybrew("store", "prune", str(store), "--max-size", str(total - 1)) == 0
    assert not shard_files(store / "bb22")
    assert values(open_store(store, "aa11"), 1, 2, 3) == [1, 2, 3]
    assert raybrew("store", "prune", str(store), "--max-size", "0") == 0
    assert not shard_files(store)


def test_prune_by_teacher_takes_a_beginning_of_the_fingerprint(store, capsys):
    assert raybrew("store", "prune", str(store), "--teacher", "aa") == 0
    assert "teacher" in capsys.readouterr().out
    assert not shard_files(store / "aa11")
    assert read_manifest(LabelStore(store).location, "aa11") == {}
    assert len(shard_files(store / "bb22")) == 1


def test_prune_merges_small_shards(store, capsys):
    assert raybrew("store", "prune", str(store), "--merge", "--dry-run") == 0
    assert "would merge 2 shards" in capsys.readouterr().out
    assert raybrew("store", "prune", str(store), "--merge") == 0
    assert "merged 2 shards" in capsys.readouterr().out
    assert len(shard_files(store / "aa11")) == 1
    assert values(open_store(store, "aa11"), 1, 2, 3) == [1, 2, 3]


def test_prune_deletes_what_a_dead_writer_left_and_not_what_a_live_one_writes(store):
    folder = shard_files(store)[0].parent
    old, new = (folder / f"shard-{n:032x}.arrow.{n:032x}.tmp" for n in (1, 2))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (A_DAY_AGO, A_DAY_AGO))
    assert raybrew("store", "prune", str(store), "--damaged") == 0
    assert not old.exists()
    assert new.exists()


def test_nothing_else_in_the_folder_is_deleted(store):
    random, signal = "0" * 32, "logits-float32"
    strangers = [
        store / "notes.txt",
        store / "proj" / "manifest.json",
        store / "bb22" / "manifest.json",
        store / "aa11" / "shard-readme.arrow",
        store / f"shard-{random}.arrow",
        store / "x" / "y" / "z" / f"shard-{random}.arrow.damaged",
        store / "aa11" / signal / "report.damaged",
        store / "aa11" / signal / "draft.tmp.txt",
        store / f"shard-{random}.arrow.{random}.tmp",
    ]
    for path in strangers:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("mine")
        os.utime(path, (A_DAY_AGO, A_DAY_AGO))
    command = ("store", "prune", str(store), "--max-size", "0", "--teacher", "aa11", "--damaged")
    assert raybrew(*command, "--teacher", "bb22") == 0
    assert not shard_files(store / "bb22")
    assert all(path.exists() for path in strangers)
    assert raybrew("store", "prune", str(store), "--teacher", "proj") == 2
    # What is left is a store all the same, if an empty one.
    assert raybrew("store", "ls", str(store)) == 0


@pytest.mark.parametrize("name", ["notes.txt", "proj/manifest.json", "a/b/c.tmp"])
@pytest.mark.parametrize("command", [["ls"], ["verify"], ["prune", "--damaged"]])
def test_a_folder_of_other_things_is_no_store(tmp_path, capsys, command, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[" * 100_000)
    assert raybrew("store", command[0], str(tmp_path), *command[1:]) == 2
    output = capsys.readouterr().err
    assert f"got {tmp_path}, which holds {name}" in output
    assert path.exists()


@pytest.mark.parametrize("content", ['{"version": 3}', "[" * 60_000, '{"format": "raybrew-x"}'])
def test_a_manifest_of_another_program_is_neither_written_over_nor_deleted(store, content):
    path = store / "bb22" / "manifest.json"
    path.write_text(content)
    write_manifest(LabelStore(store).location, "bb22", teacher="b", model="m")
    assert raybrew("store", "prune", str(store), "--teacher", "bb22") == 0
    assert path.read_text() == content
    assert not shard_files(store / "bb22")


def test_a_manifest_of_ones_own_is_written_over_and_deleted(store):
    location = LabelStore(store).location
    write_manifest(location, "aa11", teacher="a", model="elsewhere")
    assert read_manifest(location, "aa11")["model"] == "elsewhere"
    (store / "bb22" / "manifest.json").touch()  # left by a machine that lost its power
    write_manifest(location, "bb22", teacher="b", model="m")
    assert read_manifest(location, "bb22")["model"] == "m"
    assert raybrew("store", "prune", str(store), "--teacher", "aa", "--teacher", "bb") == 0
    assert not list(store.rglob("*.json"))


@pytest.mark.parametrize("command", [["ls"], ["verify"], ["prune", "--merge"]])
def test_what_may_not_be_read_is_one_message_and_exit_code_2(
    store, capfd, command, tmp_path_factory
):
    before = shard_files(store)
    before[0].chmod(0)
    store.chmod(0o755)

    def run_as_nobody() -> int:
        drop_privileges(store)
        return raybrew("store", command[0], ".", *command[1:])

    # Once before, so that nothing has to be imported by a user who may not.
    raybrew("store", command[0], str(tmp_path_factory.mktemp("empty")), *command[1:])
    capfd.readouterr()
    assert in_child(run_as_nobody) == 2
    output = capfd.readouterr().err
    assert "Permission denied" in output
    assert "Traceback" not in output
    assert shard_files(store) == before


def test_a_manifest_that_is_none_hides_no_labels(store, capsys):
    (store / "aa11" / "manifest.json").write_text("[" * 60_000)
    assert raybrew("store", "ls", str(store), "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["model"] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "{}/nowhere"], r"expected a folder or URI, got .*nowhere"),
        (["verify", "nosuch://bucket"], r"expected a folder, or the URI"),
        (["prune", "{}"], "expected --max-size, --teacher, --damaged or --merge"),
        (["prune", "{}", "--max-size", "many"], r"--max-size: expected a size.*'many'"),
        (["prune", "{}", "--max-size=-1"], r"--max-size: expected a size.*'-1'"),
        (["prune", "{}", "--max-size", "10%"], r"--max-size: expected a size.*'10%'"),
        (["ls", "s3://"], r"expected a URI with a bucket.*got none after s3://"),
        (["ls", ""], r"expected a folder or URI, got ''"),
        (["prune", "{}", "--teacher", "cc"], r"--teacher: .*aa11, bb22.*'cc'"),
        (["prune", "{}", "--teacher", ""], r"--teacher: .*''"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(store, capsys, arguments, message):
    assert raybrew("store", *(each.format(store) for each in arguments)) == 2
    output = capsys.readouterr().err
    assert re.search(message, output)
    assert "Traceback" not in output
