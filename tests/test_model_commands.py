"""`raybrew evaluate` and `raybrew inspect`: figures by hand, tables, mistakes."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import raybrew as rb
from raybrew.inspection import inspect_model
from tests.commands import raybrew
from tests.made import make_data, make_model, make_yes_no_data
from tests.student.in_process import Recorder, build
from tests.student.test_several_tasks import job as two_task_job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, seed in (("a", 0), ("b", 1)):
        make_model(folder / name, seed)
    make_model(folder / "c", 2, labels=("no", "yes"))
    for split, seed in (("train", 0), ("eval", 1)):
        make_data(20, seed=seed).to_parquet(str(folder / f"sum-{split}.parquet"))
        make_yes_no_data(20, seed=seed).to_parquet(str(folder / f"among-{split}.parquet"))
    return folder


@pytest.fixture(scope="module")
def student(folder: Path) -> Path:
    """A student of two tasks as a run leaves it."""
    models = {name: str(folder / name) for name in "abc"}
    training, _ = build(two_task_job(models, folder / "store"), folder / "encoded")
    training.run(Recorder())
    (folder / "checkpoint").mkdir()
    training.save(folder / "checkpoint")
    return folder / "checkpoint" / "student"


def write(folder: Path, *tasks: str) -> str:
    known = {
        "sum": {"name": "sum", "max_length": 32},
        "among": {"name": "among", "max_length": 32, "text": "word", "text_pair": "sentence"},
    }
    values = {
        "tasks": [
            {**known[t], "train": f"{t}-train.parquet", "eval": f"{t}-eval.parquet"} for t in tasks
        ],
        "model": {"model": "a"},
        "training": {"num_steps": 1},
    }
    path = folder / f"{'-'.join(tasks)}.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def accuracy(model: Path | str) -> float:
    data = make_data(20, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    batch = tokenizer(data["text"][:], padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = AutoModelForSequenceClassification.from_pretrained(model).eval()(**batch).logits
    return (logits.argmax(dim=-1) == torch.tensor(data["label"])).double().mean().item()


def test_evaluate_compares_models_on_a_jobs_rows(folder, capfd):
    paths = [str(folder / name) for name in "ab"]
    assert raybrew("evaluate", write(folder, "sum"), *paths) == 0
    lines = capfd.readouterr().out.splitlines()
    for path in paths:
        (line,) = [line for line in lines if line.startswith(path)]
        assert f" {accuracy(path):.4f} " in line
        assert "│       20 │" in line


def test_a_student_of_several_tasks_is_evaluated_on_each(folder, student):
    rows = [str(folder / f"sum-{split}.parquet") for split in ("train", "eval")]
    job = rb.TrainJob(
        tasks=[rb.Task(name="sum", max_length=32, train=rows[0], eval=rows[1])],
        model=rb.Student(model="a"),
        training=rb.TrainingConfig(num_steps=1),
    )
    found = rb.evaluate(job, student)
    assert found["sum"]["accuracy"] == pytest.approx(accuracy(student / "sum"))


def test_classes_go_by_their_names(folder, tmp_path, capfd):
    job, named = write(folder, "sum"), {}
    model = AutoModelForSequenceClassification.from_pretrained(folder / "a")
    for name, order in (("same", (0, 1, 2)), ("other", (2, 0, 1))):
        with torch.no_grad():
            for tensor in model.classifier.parameters():
                tensor.copy_(tensor[list(order)])
        labels = [("down", "level", "up")[n] for n in order]
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: n for n, label in enumerate(labels)}
        model.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(folder / "a").save_pretrained(tmp_path / name)
        assert raybrew("evaluate", job, str(tmp_path / name)) == 0
        (line,) = [s for s in capfd.readouterr().out.splitlines() if s.startswith(str(tmp_path))]
        named[name] = line.removeprefix(str(tmp_path / name)).replace(" ", "")
    assert named["same"] == named["other"]
    assert f"{accuracy(folder / 'a'):.4f}" in named["other"]
    alien = make_model(tmp_path / "alien", 0, labels=("up", "down", "flat"))
    assert raybrew("evaluate", job, alien) == 2
    shown = " ".join(capfd.readouterr().err.split())
    assert "labels (down, level, up) in any order, got up, down, flat" in shown


def test_tables_of_several_tasks_and_what_is_unclear(folder, student, capfd):
    job = write(folder, "sum", "among")
    assert raybrew("evaluate", job, str(student)) == 0
    out = capfd.readouterr().out
    assert out.splitlines()[0] == "sum"
    assert "among" in out.splitlines()
    assert raybrew("evaluate", job, str(folder / "a")) == 2
    assert "expected the task" in capfd.readouterr().err
    assert raybrew("evaluate", job, str(folder / "a"), "--task", "sum") == 0
    assert raybrew("evaluate", job, str(folder / "c"), "--task", "sum") == 2
    assert "expected 3 labels" in " ".join(capfd.readouterr().err.split())
    assert raybrew("evaluate", job) == 2
    assert "expected a model to evaluate" in capfd.readouterr().err
    assert raybrew("evaluate", str(folder / "nowhere.yaml"), "a") == 2
    assert raybrew("evaluate", job, "a", "--task", "other") == 2
    err = capfd.readouterr().err
    assert "expected one of sum, among" in err
    assert "Traceback" not in err


def test_inspect_shows_the_tree_and_the_figures(folder, student, capfd):
    model = AutoModelForSequenceClassification.from_pretrained(folder / "a")
    count = sum(p.numel() for p in model.parameters())
    assert raybrew("inspect", str(folder / "a"), "--length", "16", "--batch-size", "4") == 0
    out = capfd.readouterr().out
    assert "(BertForSequenceClassification)" in out
    assert f"{count:,} parameters, {4 * count / 2**20:.1f} MB" in out
    assert "classifier" in out
    found = inspect_model(str(student), length=8, batch_size=2, repeats=2)
    assert [Path(each.name).name for each in found] == ["sum", "among"]
    assert all(each.examples_per_s > 0 for each in found)
    assert raybrew("inspect", str(folder / "a"), "--length", "1000") == 2
    assert raybrew("inspect", str(folder / "nowhere")) == 2
    err = capfd.readouterr().err
    assert "at most 64" in err
    assert "Traceback" not in err
