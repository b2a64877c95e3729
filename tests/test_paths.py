"""Paths that can't be looked up: one message that names the field."""

from pathlib import Path

import pytest

import raybrew as rb
from raybrew.inspection import inspect_model
from raybrew.jobfile import load_job
from raybrew.labels.spec import StoreSpec
from raybrew.models.pretrained import read_config, read_tokenizer
from raybrew.paths import data_path, user_path
from raybrew.run_folder import RunFolder
from raybrew.textbrewer_config import converted
from tests.commands import raybrew

LONG = "x" * 300
PLACES = {
    "job file": lambda path: load_job(rb.DistillJob, path),
    "student.model": lambda path: read_config(path, "student.model"),
    "student.tokenizer_from": lambda path: read_tokenizer(path, "student.tokenizer_from"),
    "labels.store": lambda path: StoreSpec.of(rb.LabelConfig(store=path)),
    "labels.cache": lambda path: StoreSpec.of(rb.LabelConfig(cache=path)),
    "run.storage_path": lambda path: RunFolder(path, "run"),
    "model": inspect_model,
    "TextBrewer's JSON file": converted,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("path", "got"), [("~nosuch/x", "no user of this name has a"), (LONG, "File name too long")]
)
def test_a_path_that_cant_be_looked_up_names_its_field(place, path, got):
    with pytest.raises(ValueError, match=rf"{place}: expected a path, got '[x~].*{got}"):
        PLACES[place](path)


@pytest.mark.parametrize(
    ("storage", "folder"),
    [
        ("/data/a#b", "/data/a#b"),
        ("/data/a?b", "/data/a?b"),
        ("/data/a%20b", "/data/a%20b"),
        ("file:///data/a%20b%23c", "/data/a b#c"),
        ("file://localhost/data/a", "/data/a"),
    ],
)
def test_a_storage_path_is_taken_whole(storage, folder):
    assert RunFolder(storage, "run").path == Path(folder) / "run"


@pytest.mark.parametrize("storage", ["file:///data/a#b", "file:///data/a?b", "file://data/a"])
def test_a_uri_that_would_be_cut_is_refused(storage):
    with pytest.raises(rb.ConfigError, match=r"run\.storage_path: expected file:///<path>.*got"):
        RunFolder(storage, "run")


def test_a_runs_name_may_be_too_long(tmp_path):
    with pytest.raises(rb.ConfigError, match=r"run\.name: expected a name .*of at most 200 bytes"):
        RunFolder(str(tmp_path), LONG)


@pytest.mark.parametrize("arguments", [["evaluate"], ["inspect"], ["store", "ls"]])
@pytest.mark.parametrize("path", ["~nosuch/x", LONG])
def test_commands_end_with_2(arguments, path, capsys):
    assert raybrew(*arguments, path) == 2
    told = capsys.readouterr().err
    assert "expected a path" in told
    assert "Traceback" not in told


def test_a_path_as_it_is_written_wins_over_a_split(tmp_path):
    (tmp_path / "a@b").mkdir()
    assert data_path(f"{tmp_path}/a@b") == (f"{tmp_path}/a@b", "")
    assert data_path(f"{tmp_path}/a@b@c") == (f"{tmp_path}/a@b", "c")
    assert data_path(f"{tmp_path}/a@b/c") == (f"{tmp_path}/a@b/c", "")
    assert data_path("org/set:zh@dev[:10%]") == ("org/set:zh", "dev[:10%]")
    assert user_path("~", "x") == Path.home()
