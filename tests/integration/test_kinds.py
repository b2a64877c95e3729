"""Kinds of task on a real Ray: words, with two workers as with one."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from ray.train import RunConfig, ScalingConfig

import raybrew as rb
from tests.made import make_job, make_nameless
from tests.tasks.made_models import byte_pairs, make_task_model
from tests.tasks.test_runs import job_of
from tests.training import in_process

pytestmark = [pytest.mark.ray, pytest.mark.beside, pytest.mark.usefixtures("cluster")]


def run(job: rb.DistillJob, folder: Path) -> rb.RunResult:
    return rb.distill(
        job,
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="run", storage_path=str(folder)),
    )


def losses(result: rb.RunResult) -> list[float]:
    lines = Path(result.folder, "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line).get("train/t/loss") for line in lines]
    return [loss for loss in found if loss is not None]


def test_words_from_two_tokenizers_with_two_workers_as_with_one(tmp_path):
    kind = "token-classification"
    paths = {
        "a": make_task_model(tmp_path / "a", kind, 0),
        "b": make_task_model(tmp_path / "b", kind, 1, byte_pairs()),
    }
    job = job_of(kind, paths, tmp_path / "store")
    teachers = [
        each.model_copy(update={"resources": {"CPU": 0.25}, "inputs": inputs})
        for each, inputs in zip(job.teachers, ("shared", "own"), strict=True)
    ]
    # A third one is a column of the data: a list of numbers a word.
    (task,) = job.tasks
    answers = {
        side: [[[float(len(word))] * 4 for word in words] for words in getattr(task, side)["words"]]
        for side in ("train", "eval")
    }
    rows = {side: getattr(task, side).add_column("answers", answers[side]) for side in answers}
    teachers.append(rb.Teacher(name="c", task="t", logits="answers", weight=0.5))
    job = job.model_copy(
        update={"teachers": tuple(teachers), "tasks": (task.model_copy(update=rows),)}
    )
    two = run(job, tmp_path / "2")
    # In the store before the run began, as far as the run can tell.
    supplied = two.labels["in_store"]
    assert supplied > 0
    assert two.labels["forwards"] == two.labels["needed"] - supplied
    # One is this process, with the same labels.
    one = in_process.run(job, tmp_path / "1")
    np.testing.assert_allclose(one.term("t"), losses(two), rtol=1e-5)
    assert set(two.teachers) == {"a", "b", "c"}
    assert set(two.teachers["b"]) == {"examples", "accuracy", "precision", "recall", "f1"}
    masked = two.data["t train"]["words_unaligned_b"]
    assert 0 < masked < two.data["t train"]["words"]
    report = Path(two.folder, "report.txt").read_text()
    assert re.search(rf"^t train +│ +words_unaligned_b +│ +{masked:.0f}$", report, re.MULTILINE)


@pytest.mark.parametrize("placement", ["pool", "worker"])
def test_classes_in_another_order_stop_the_run_before_its_first_step(placement, tmp_path):
    path, rows = make_nameless(tmp_path / "a", ("cat", "ant", "bee"))
    task = rb.Task(name="t", train=rows, max_length=32)
    teacher = rb.Teacher(name="a", task="t", model=path, placement=placement)
    job = make_job({}, tmp_path / "store", tasks=[task], teachers=[teacher])
    with pytest.raises(
        rb.ConfigError, match=r'teachers\[a\]\.model.*label_names: \["cat", "ant", "bee"\]'
    ):
        run(job, tmp_path / "wrong")
    assert not (tmp_path / "wrong" / "run" / "checkpoints").exists()
