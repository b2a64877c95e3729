import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from pyarrow.fs import LocalFileSystem
from ray import tune
from ray.train import RunConfig

import raybrew as rb
from raybrew.config.distillation import from_textbrewer
from raybrew.config.job_file import load_job
from raybrew.config.section import data_path, held_by, names_in, user_path
from raybrew.data.sources import load_source
from raybrew.labels.remote import StoreSpec
from raybrew.models.parameters import inspect_model
from raybrew.models.pretrained import read_config, read_tokenizer
from raybrew.runs.folder import RunFolder
from raybrew.runs.run import Run
from raybrew.sweeps.sweep import sweep_config
from tests.commands import raybrew
from tests.made import make_job

# Paths that can't be looked up: one message that names the field.

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
    "TextBrewer's JSON file": from_textbrewer,
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


def test_runs_from_python_land_where_those_of_the_command_line_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Run(JOB, "distill", None, RunConfig(name="x")).folder.path == tmp_path / "runs" / "x"
    there = RunConfig(name="x", storage_path="there")
    assert Run(JOB, "distill", None, there).folder.path == tmp_path / "there" / "x"


def test_a_runs_name_may_be_too_long(tmp_path):
    with pytest.raises(rb.ConfigError, match=r"run\.name: expected a name .*of at most 200 bytes"):
        RunFolder(str(tmp_path), LONG)


@pytest.mark.parametrize("arguments", [["evaluate"], ["inspect"], ["store", "ls"]])
@pytest.mark.parametrize("path", ["~nosuch/x", LONG])
def test_commands_end_with_2(arguments, path, capsys):
    assert raybrew(*arguments, path) == 2
    shown = capsys.readouterr().err
    assert "expected a path" in shown
    assert "Traceback" not in shown


def test_a_path_as_it_is_written_wins_over_a_split(tmp_path):
    (tmp_path / "a@b").mkdir()
    assert data_path(f"{tmp_path}/a@b") == (f"{tmp_path}/a@b", "")
    assert data_path(f"{tmp_path}/a@b@c") == (f"{tmp_path}/a@b", "c")
    assert data_path(f"{tmp_path}/a@b/c") == (f"{tmp_path}/a@b/c", "")
    assert data_path("org/set:zh@dev[:10%]") == ("org/set:zh", "dev[:10%]")
    assert user_path("~", "x") == Path.home()


# Files and folders that this user may not read: one message that names the field.
#
# Tests may run as root, whom no mode of a file stops, so the system's refusal is made here.

Refuse = Callable[[Path], None]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Make this folder or file unreadable."""

    def refuse(place: Path) -> None:
        def refusing(real):
            def asked(path=".", *arguments, **options):
                if not isinstance(path, int) and os.fspath(path) == str(place):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
                return real(path, *arguments, **options)

            return asked

        for name in ("os.listdir", "os.scandir", "io.open", "builtins.open"):
            real = {"os.listdir": os.listdir, "os.scandir": os.scandir}.get(name, io.open)
            monkeypatch.setattr(name, refusing(real))

    return refuse


def test_what_a_folder_holds_is_shown_or_that_it_cant_be_read(tmp_path, refuse):
    assert held_by(tmp_path) == "nothing"
    for name in "cab":
        (tmp_path / name).touch()
    assert names_in(tmp_path) == ["a", "b", "c"]
    assert held_by(tmp_path) == "a, b, c"
    for number in range(6):
        (tmp_path / f"d{number}").touch()
    assert held_by(tmp_path) == "a, b, c, d0, d1, d2, d3, d4, …"
    refuse(tmp_path)
    assert names_in(tmp_path) == []
    assert held_by(tmp_path) == "what can't be read (Permission denied)"


@pytest.mark.parametrize("name", ["", "none.csv"])
def test_data_in_an_unreadable_folder(name, tmp_path, refuse):
    refuse(tmp_path)
    with pytest.raises(rb.DataError, match=r"t\.train: expected a .*what can't be read \(Permiss"):
        load_source(str(tmp_path / name), "t.train")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv"])
def test_an_unreadable_file_of_data(name, tmp_path, refuse):
    (tmp_path / name).write_text("[]")
    refuse(tmp_path / name)
    with pytest.raises(rb.DataError, match=r"t\.train: .*can't be read as \..*Permission denied"):
        load_source(str(tmp_path / name), "t.train")


def test_a_file_of_questions_that_breaks_off(tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"data": [{"paragraphs": []}]}))
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: _fail(OSError(5, "Input/output error")))
    with pytest.raises(rb.DataError, match=r"rows\.json can't be read as \.json.*Input/output"):
        load_source(str(path), "t.train")


@pytest.mark.parametrize("name", ["model", "model/none"])
def test_models_in_an_unreadable_folder(name, tmp_path, refuse):
    (tmp_path / "model").mkdir()
    refuse(tmp_path / "model")
    with pytest.raises(rb.ConfigError, match=r"student\.model: expected a folder with") as caught:
        read_config(str(tmp_path / name), "student.model")
    message = "doesn't exist" if "/" in name else "holds what can't be read (Permission denied)"
    assert message in str(caught.value)


def test_evaluate_of_an_unreadable_job(tmp_path, refuse, capsys):
    job = tmp_path / "job.yaml"
    job.write_text("tasks: []")
    refuse(job)
    assert raybrew("evaluate", str(job), "model") == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "expected a YAML file in UTF-8, got: [Errno 13] Permission denied" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DatasetGenerationError("An error occurred"), "the disk is full"),
        (OSError(), "OSError"),
    ],
)
def test_a_set_of_the_hub_that_cant_be_made(error, message, monkeypatch):
    if isinstance(error, DatasetGenerationError):
        error.__cause__ = OSError("the disk is full")
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: _fail(error))
    with pytest.raises(rb.DataError, match=f"as a hub id it can't be had: {message}"):
        load_source("org/set", "t.train")


def _fail(error: Exception) -> Dataset:
    raise error
