"""`raybrew init` writes jobs that load; `raybrew schema` takes what a job may be, and no typo."""

import csv
import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from datasets import Dataset

import raybrew as rb
from raybrew.config.job_file import load_job
from raybrew.data.inspection import guess_target, inspect_rows
from raybrew.tasks.task_data import read_task_data, with_labels
from tests.commands import raybrew
from tests.made import make_data, make_model
from tests.structure import ROOT


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = make_data(200)
    names = rows.features["label"].names
    with open("my rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label"])
        for n, (text, label) in enumerate(zip(rows["text"], rows["label"], strict=True)):
            writer.writerow([n, text, names[label] if n < 150 else ""])
    make_model(tmp_path / "tuned", 0)
    make_model(tmp_path / "other", 0, labels=("cat", "dog"))
    return tmp_path


def test_init_writes_a_teacher_and_a_distillation_that_load(place, capsys):
    assert raybrew("init", "my rows.csv", "--teacher", "other") == 0
    shown = capsys.readouterr().out
    assert "without label: 50 rows" in shown
    assert "raybrew train-teacher teacher.yaml" in shown
    teacher = load_job(rb.TrainJob, "teacher.yaml").job
    job = load_job(rb.DistillJob, "distill.yaml").job
    (task,) = job.tasks
    assert (task.name, task.kind, task.text, task.label) == (
        "my-rows",
        "sequence-classification",
        "text",
        "label",
    )
    assert teacher.model.model == str(place / "other")
    assert job.teachers[0].model == "runs/my-rows-teacher/student"
    data = read_task_data(task)
    assert data.eval is not None
    assert (len(data.train), len(data.eval)) == (185, 15)
    assert len(with_labels(data).train) == 135
    schemas = {"distill": "distill.yaml", "train": "teacher.yaml"}
    for name, file in schemas.items():
        first, text = Path(file).read_text().split("\n", 1)
        assert first == f"# yaml-language-server: $schema=.raybrew/{name}.schema.json"
        schema = json.loads(Path(".raybrew", f"{name}.schema.json").read_text())
        jsonschema.validate(yaml.safe_load(text), schema)
    assert raybrew("init", "my rows.csv", "--teacher", "other") == 2
    assert "which exists" in capsys.readouterr().err


def test_init_needs_no_training_for_a_model_of_these_classes(place, capsys):
    assert raybrew("init", "my rows.csv", "--teacher", "tuned", "--student", "T3") == 0
    assert not Path("teacher.yaml").exists()
    job = load_job(rb.DistillJob, "distill.yaml").job
    assert job.teachers[0].model == str(place / "tuned")
    assert job.student.preset == "T3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the data file"),
        (("nowhere.csv",), "nowhere.csv"),
        (("my rows.csv", "--target", "lable"), "expected a column 'lable'"),
        (("my rows.csv", "--teacher", "./nowhere"), "--teacher.*nowhere"),
    ],
)
def test_init_says_what_is_wrong_and_writes_nothing(arguments, message, place, capfd):
    assert raybrew("init", *arguments) == 2
    assert message.split(".*")[-1] in capfd.readouterr().err
    assert not Path("distill.yaml").exists()


@pytest.mark.parametrize(
    ("columns", "kind", "label"),
    [
        ({"text": ["a b"] * 9, "score": [n / 7 for n in range(9)]}, "regression", "score"),
        ({"text": ["a"] * 9, "stars": [1, 2, 3] * 3}, "sequence-classification", "stars"),
        ({"body": ["a"] * 4, "tags": [["x"], ["y"], [], ["x"]]}, "multi-label", "tags"),
        (
            {"words": [["a", "b"]] * 3, "tags": [["O", "B"]] * 3},
            "token-classification",
            "tags",
        ),
        ({"story": ["once upon a time"] * 3}, "causal-lm", None),
    ],
)
def test_the_task_type_is_guessed(columns, kind, label):
    rows = Dataset.from_dict(columns)
    target = guess_target(rows)
    assert target == label
    assert inspect_rows(rows, label=target).kind == kind


def test_rows_set_apart_are_the_same_ones_however_many_rows_follow():
    rows = make_data(200, twice=6)
    whole = read_task_data(rb.Task(name="a", train=rows, eval_fraction=0.1))
    part = read_task_data(rb.Task(name="a", train=rows.select(range(150)), eval_fraction=0.1))
    other = read_task_data(rb.Task(name="a", train=rows, eval_fraction=0.1, eval_seed=1))
    assert whole.eval is not None
    assert part.eval is not None
    assert other.eval is not None
    assert not {*whole.eval.texts} & {*whole.train.texts}
    assert len({*whole.eval.texts}) == 19
    assert len({*part.eval.texts} - {*whole.eval.texts}) <= 3
    assert {*other.eval.texts} != {*whole.eval.texts}
    with pytest.raises(rb.ConfigError, match="both"):
        rb.Task(name="a", train=rows, eval=rows, eval_fraction=0.1)


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").rglob("*.yaml")), ids=str)
def test_the_schema_takes_the_jobs_of_the_experiments_and_no_typo(file, capsys):
    values = yaml.safe_load(file.read_text())
    assert raybrew("schema", *(["--train"] if "model" in values else [])) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.validate(values, schema)
    assert "description" in schema["$defs"]["Task"]["properties"]["max_length"]
    values["training"]["learning_rat"] = 1
    with pytest.raises(jsonschema.ValidationError, match="learning_rat"):
        jsonschema.validate(values, schema)
