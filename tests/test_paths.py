"""Paths that can't be looked up: one message that names the field."""

from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem
from ray import tune
from ray.train import RunConfig

import raybrew as rb
from raybrew.inspection import inspect_model
from raybrew.jobfile import load_job
from raybrew.labels.spec import StoreSpec
from raybrew.models.pretrained import read_config, read_tokenizer
from raybrew.paths import data_path, user_path
from raybrew.run import Run
from raybrew.run_folder import RunFolder
from raybrew.textbrewer_config import converted
from raybrew.tuning.sweep import sweep_config
from tests.commands import raybrew
from tests.made import make_job

LONG = "x" * 300
JOB = make_job({"a": "x/a"}, Path("/store"))
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


@pytest.mark.parametrize("storage", ["runs", "my runs", "[v1] a#b%20c", "a:b", "~/runs"])
def test_ray_gets_an_absolute_storage_path(storage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    given = RunConfig(name="first", storage_path=storage)
    place = tmp_path / storage.removeprefix("~/")
    run = Run(JOB, "distill", None, given)
    assert run.folder.path == place / "first"
    assert run.ray_config.storage_path == str(place)
    assert given.storage_path == storage  # the caller's own
    swept = sweep_config(tune.RunConfig(storage_path=storage, stop={"step": 3}), resume=False)
    assert (swept.storage_path, swept.stop) == (str(place), {"step": 3})


def test_runs_go_to_the_folder_runs_where_nothing_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Run(JOB, "distill", None, None).folder.path.parent == tmp_path / "runs"
    assert sweep_config(None, resume=False).storage_path == str(tmp_path / "runs")


def test_a_file_system_of_ones_own_is_refused():
    config = RunConfig(name="a", storage_path="b", storage_filesystem=LocalFileSystem())
    with pytest.raises(rb.ConfigError, match=r"run\.storage_filesystem: expected none.*got Local"):
        Run(JOB, "distill", None, config)


@pytest.mark.parametrize(
    "resumed",
    [
        lambda: Run(JOB, "distill", None, None, resume=True),
        lambda: Run(JOB, "distill", None, RunConfig(storage_path="x"), resume=True),
        lambda: sweep_config(None, resume=True),
        lambda: sweep_config(tune.RunConfig(storage_path="x"), resume=True),
    ],
)
def test_a_run_to_resume_has_a_name(resumed):
    with pytest.raises(
        rb.ConfigError, match=r"resume: expected run\.name to say which run to go on"
    ):
        resumed()


def test_a_run_that_ray_named_can_be_resumed_by_that_name(tmp_path):
    (tmp_path / "ray_train_run-2026-01-01_00-00-00").mkdir()
    config = RunConfig(name="ray_train_run-2026-01-01_00-00-00", storage_path=str(tmp_path))
    assert Run(JOB, "distill", None, config, resume=True).folder.path.is_dir()


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
