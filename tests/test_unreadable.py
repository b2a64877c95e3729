"""Files and folders that this user may not read: one message that names the field.

Tests may run as root, whom no mode of a file stops, so the system's refusal is made here.
"""

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError

import raybrew as rb
from raybrew.data.sources import load_source
from raybrew.models.pretrained import read_config
from raybrew.paths import held_by, names_in
from tests.commands import raybrew

Refuse = Callable[[Path], None]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Let nobody list this folder or open this file."""

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


def test_what_a_folder_holds_is_said_or_that_it_cant_be_read(tmp_path, refuse):
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
    said = "doesn't exist" if "/" in name else "holds what can't be read (Permission denied)"
    assert said in str(caught.value)


def test_evaluate_of_an_unreadable_job(tmp_path, refuse, capsys):
    job = tmp_path / "job.yaml"
    job.write_text("tasks: []")
    refuse(job)
    assert raybrew("evaluate", str(job), "model") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "expected a YAML file in UTF-8, got: [Errno 13] Permission denied" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DatasetGenerationError("An error occurred"), "the disk is full"),
        (OSError(), "OSError"),
    ],
)
def test_a_set_of_the_hub_that_cant_be_made(error, said, monkeypatch):
    if isinstance(error, DatasetGenerationError):
        error.__cause__ = OSError("the disk is full")
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: _fail(error))
    with pytest.raises(rb.DataError, match=f"as a hub id it can't be had: {said}"):
        load_source("org/set", "t.train")


def _fail(error: Exception) -> Dataset:
    raise error
