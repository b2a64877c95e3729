"""`raybrew predict` and `evaluate --predictions`: files in and out, columns kept, clear errors."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from transformers import pipeline

import raybrew as rb
from raybrew.evaluation.saved_models import save_task, saved_task
from raybrew.runs.report import RunResult
from raybrew.runs.student_folder import complete_student
from raybrew.tasks import TASK_TYPES
from tests.commands import raybrew
from tests.made import CLASSES, make_data, make_model
from tests.tasks.made_models import make_rows, make_task_model

PREDICTED = {
    "multi-label": "predicted_labels",
    "regression": "predicted_value",
    "token-classification": "predicted_tags",
    "question-answering": "predicted_answer",
    "causal-lm": "predicted_loss",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "model", 0)
    rows = make_data(30)
    names = rows.features["label"].names
    texts, labels = list(rows["text"]), [names[n] for n in rows["label"]]
    made = Dataset.from_dict({"id": list(range(30)), "body": texts, "label": labels})
    made.to_csv("rows.csv", index=False)
    made.to_json("rows.jsonl")
    made.to_parquet("rows.parquet")
    save_task(tmp_path / "model", rb.Task(name="sum", train="x", text="body", max_length=16))
    return tmp_path


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("given", ["csv", "jsonl", "parquet"])
def test_rows_keep_their_columns_and_get_predictions(given, form, place):
    assert raybrew("predict", "model", f"rows.{given}", "-o", f"out.{form}") == 0
    if form == "parquet":
        rows = pq.read_table("out.parquet").to_pylist()
    elif form == "jsonl":
        rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    else:
        separator = "\t" if form == "tsv" else ","
        rows = list(
            csv.DictReader(Path(f"out.{form}").read_text().splitlines(), delimiter=separator)
        )
    assert [int(row["id"]) for row in rows] == list(range(30))
    call = pipeline("text-classification", str(place / "model"))
    expected = [each["label"] for each in call([row["body"] for row in rows], truncation=True)]  # type: ignore[index]
    assert [row["predicted_label"] for row in rows] == expected
    assert all(0 < float(row["predicted_probability"]) <= 1 for row in rows)
    assert {*place.iterdir()} == {
        place / name for name in ("model", "rows.csv", "rows.jsonl", "rows.parquet", f"out.{form}")
    }


@pytest.mark.parametrize("kind", PREDICTED)
def test_every_task_type_is_predicted(kind, tmp_path):
    make_task_model(tmp_path / "model", kind, 0)
    save_task(tmp_path / "model", rb.Task(name="t", kind=kind, train="x", max_length=32, stride=4))
    rows = make_rows(kind, 6)
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    out = str(tmp_path / "out.parquet")
    assert (
        raybrew("predict", str(tmp_path / "model"), str(tmp_path / "rows.parquet"), "-o", out) == 0
    )
    found = pq.read_table(out)
    assert found.column_names[: len(rows.column_names)] == rows.column_names
    assert PREDICTED[kind] in found.column_names
    assert len(found) == 6
    assert TASK_TYPES[kind].name == saved_task(str(tmp_path / "model")).kind  # type: ignore[union-attr]


def test_standard_input_and_output(place, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("body\nw1 w2\nw3\n"))
    assert raybrew("predict", "model", "-") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "body,predicted_label,predicted_probability"
    assert len(lines) == 3


WRONG = {
    "no such file": (["nowhere.csv"], r"nowhere\.csv"),
    "missing column": (["bodies.csv"], r"a column 'body'.*got bodi.*--text"),
    "no text": (["gap.csv"], r"row 1: expected text in 'body', got none"),
    "no rows": (["none.csv"], r"expected rows, got an empty"),
    "an unknown form": (["rows.csv", "-o", "out.xlsx"], r"-o: expected a file .*out\.xlsx"),
    "no folder": (["rows.csv", "-o", "nowhere/out.csv"], r"-o: expected a file in a folder"),
    "a task of a model of one": (["rows.csv", "--task", "x"], r"--task: expected none"),
    "a column that is written": (["clash.csv"], r"columns without predicted_label"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_can_not_be_predicted_is_one_message(case, place, capfd):
    Path("bodies.csv").write_text("bodi,x\nw1,2\n")
    Path("gap.csv").write_text("body,x\nw1,2\n,3\n")
    Path("none.csv").write_text("body\n")
    Path("clash.csv").write_text("body,predicted_label\nw1,2\n")
    before = {*place.iterdir()}
    arguments, message = WRONG[case]
    assert raybrew("predict", "model", *arguments) == 2
    assert re.search(message, " ".join(capfd.readouterr().err.split()))
    assert {*place.iterdir()} == before


def test_a_model_is_evaluated_on_a_file_with_predictions_and_confusion(place, capsys):
    assert raybrew("evaluate", "model", "--data", "rows.csv", "--predictions", "out.csv") == 0
    shown = capsys.readouterr().out
    assert "rows: true class, columns: predicted" in shown
    rows = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    right = sum(row["label"] == row["predicted_label"] for row in rows) / len(rows)
    assert f"{right:.4f}" in shown


def test_a_finished_student_has_a_card_its_task_and_modes_that_others_may_read(place):
    folder = place / "model"
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"local_files_only": True}))
    (folder / "model.safetensors").chmod(0o600)
    task = rb.Task(name="sum", train="owner/rows", eval="rows.csv", text="body", max_length=16)
    job = rb.DistillJob(
        tasks=[task],
        teachers=[rb.Teacher(name="a", task="sum", model="owner/big")],
        student=rb.Student(preset="T3"),
        training=rb.TrainingConfig(num_steps=1),
    )
    result = RunResult(
        folder=str(place / "run"),
        student=str(folder),
        metrics={"eval/sum/accuracy": 0.75, "eval/sum/examples": 8.0, "eval/score": 0.75},
        teachers={"a": {"accuracy": 0.875, "examples": 8.0}},
        ensembles={"sum": {"accuracy": 0.875}},
        labels={},
        times={},
    )
    complete_student(folder, job, result)
    from huggingface_hub import ModelCard

    card: Any = ModelCard.load(folder / "README.md")
    assert card.data.base_model == ["owner/big"]
    assert card.data.datasets == ["owner/rows"]
    assert card.data.pipeline_tag == "text-classification"
    (score,) = card.data.eval_results or []
    assert (score.metric_type, score.metric_value) == ("accuracy", 0.75)
    assert "| teacher a | 0.8750 | 8 |" in card.text
    assert "to be chosen by you" in card.text
    assert "local_files_only" not in settings.read_text()
    new = place / "new"
    new.touch()
    assert (folder / "model.safetensors").stat().st_mode == new.stat().st_mode
    saved = saved_task(str(folder))
    assert saved is not None
    assert (saved.text, saved.max_length) == ("body", 16)
    code = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)[0].replace(
        "FOLDER", str(folder)
    )
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["model"]("w1 w2")[0]["label"] in CLASSES
