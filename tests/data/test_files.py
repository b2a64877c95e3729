"""Files of a run are JSON to every reader, also where a number is not finite."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from raybrew.data.files import to_json
from raybrew.errors import Event
from raybrew.runs.events import EventLog
from raybrew.runs.folder import RunFolder

PLACE = Path(__file__).resolve().parents[2]


def strict(text: str):
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_are_texts_that_float_reads():
    nan, inf = float("nan"), float("inf")
    values = {"a": [nan, (inf, -inf)], 3: np.float32("nan"), "n": np.int64(7), "t": "ä", "x": None}
    read = strict(to_json(values))
    assert read == {"a": ["nan", ["inf", "-inf"]], "3": "nan", "n": 7, "t": "ä", "x": None}
    assert float(read["a"][1][1]) == -inf
    with pytest.raises(TypeError):
        to_json({"a": print})
    assert strict(to_json({"a": [Path("b")]}, default=str)) == {"a": ["b"]}


def test_the_report_and_the_events_of_a_run(tmp_path):
    folder = RunFolder(str(tmp_path), "run")
    folder.path.mkdir()
    folder.write_json("report.json", {"metrics": {"eval/x/pearson": float("nan")}})
    read = strict((folder.path / "report.json").read_text())
    assert read == {"metrics": {"eval/x/pearson": "nan"}}
    log = EventLog(folder.path)
    log.add(Event("rank died", "rank 1", "again", lost_s=float("inf")))
    assert strict((folder.path / "events.jsonl").read_text())["lost_s"] == "inf"
    assert [event["lost_s"] for event in log.all()] == ["inf"]


def test_figures_are_written_by_one_writer():
    """Python's own writes NaN as it stands; what we read ourselves may be written by it."""
    own = {
        "raybrew/data/files.py",
        "raybrew/data/split.py",
        "raybrew/labels/contents.py",
        "raybrew/models/students.py",
        "raybrew/runs/resolve.py",
        "raybrew/training/snapshot.py",
        "raybrew/training/checkpoints.py",
        "raybrew/textbrewer/resumption.py",
        "raybrew/sweeps/trial.py",
        "raybrew/cli/jobs.py",
        "raybrew/data/sources.py",
        "raybrew/evaluation/onnx_export.py",
        "raybrew/evaluation/prediction_files.py",
        "raybrew/evaluation/saved_models.py",
        "raybrew/runs/student_folder.py",
    }
    files = [path for room in ("raybrew", "experiments") for path in (PLACE / room).rglob("*.py")]
    found = {
        path.relative_to(PLACE).as_posix()
        for path in files
        if re.search(r"\bjson\.dumps?\(", path.read_text(encoding="utf-8"))
    }
    assert found <= own
