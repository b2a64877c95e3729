"""`raybrew train-teacher` and `raybrew evaluate` for every task type, from files to metrics.

What trains is what trains on Ray, in this process: the processes around it are the same for every
kind, and tests/integration starts them.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import raybrew as rb
from raybrew.runs.resolve import resolve_job
from raybrew.tasks import TASK_TYPES
from raybrew.training.build import build_training
from raybrew.training.world import World
from tests.commands import raybrew
from tests.made import make_data, make_model
from tests.tasks.made_models import make_rows, make_task_model, names_of
from tests.training.in_process import Recorder


def write_job(folder: Path, kind: str) -> Path:
    """A job's file with its data and the model to start from, all of them on disk."""
    texts = kind == "sequence-classification"
    for side, rows, seed in (("train", 24, 0), ("eval", 9, 1)):
        made = make_data(rows, seed) if texts else make_rows(kind, rows, seed)
        made.to_parquet(str(folder / f"{side}.parquet"))
    task: dict[str, Any] = {"train": "train.parquet", "eval": "eval.parquet", "stride": 4}
    names = names_of(kind)
    if len(names) > 1 and kind != "question-answering":
        task["label_names"] = list(names)
    if texts:
        make_model(folder / "base", 0)
    else:
        make_task_model(folder / "base", kind, 0)
    values = {
        "tasks": [{"name": "t", "kind": kind, "max_length": 24, **task}],
        "model": {"model": "base"},
        "training": {"num_steps": 6, "batch_size": 8, "learning_rate": 1e-3, "num_threads": 1},
        "run": {"name": "teacher", "storage_path": str(folder)},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    return folder / "job.yaml"


def train_here(job: rb.TrainJob, *, run_config: Any, **_: Any) -> SimpleNamespace:
    folder = Path(run_config.storage_path, run_config.name)
    plan = resolve_job(job, folder / "data")
    training = build_training(plan, World(), None)
    last = training.run(Recorder())
    training.save(folder)
    print("".join(f"{k} {v:.4f}\n" for k, v in last.items()))
    return SimpleNamespace(folder=str(folder))


@pytest.mark.parametrize("kind", list(TASK_TYPES))
def test_a_teacher_is_trained_and_evaluated_from_files(kind, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("raybrew.api.train", train_here)
    path = write_job(tmp_path, kind)
    assert raybrew("train-teacher", str(path)) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    pairs = [words for words in lines if len(words) == 2]
    found = {name.removeprefix("eval/t/"): value for name, value in pairs if "eval/t/" in name}
    teacher = str(tmp_path / "teacher" / "student")
    assert raybrew("evaluate", str(path), teacher) == 0
    shown = capfd.readouterr().out
    assert TASK_TYPES[kind].main_metric(names_of(kind)) in found
    for name, value in found.items():
        assert name in shown
        assert (value if name != "examples" else f"{float(value):.0f}") in shown, name
