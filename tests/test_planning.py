"""What ranks are told holds wherever they are: Ray Train gives them a working directory."""

from pathlib import Path
from typing import Any

import pytest

import raybrew as rb
from raybrew.labels.spec import StoreSpec
from raybrew.planning import distill_plan, supervised_plan
from raybrew.preparation import prepare, prepare_supervised
from raybrew.student.building import build_training
from raybrew.student.world import World
from tests.made import STUDENT_CONFIG, make_job, make_model
from tests.student.in_process import LocalPool, Recorder

TRAINING = rb.TrainingConfig(num_steps=2, batch_size=8, learning_rate=1e-3, num_threads=1)
STUDENTS: dict[str, dict[str, Any]] = {
    "of the first teacher's configuration": {"config": STUDENT_CONFIG},
    "with a tokenizer's folder": {"config": STUDENT_CONFIG, "tokenizer_from": "models/a"},
    "with a teacher's tokenizer": {"config": STUDENT_CONFIG, "tokenizer_from": "a"},
    "from a folder": {"model": "models/a"},
    "from layers of a folder": {"layers_from": ("models/a", [0])},
}


@pytest.mark.parametrize("student", STUDENTS.values(), ids=STUDENTS)
def test_relative_paths_are_those_of_the_driver(student, tmp_path, monkeypatch):
    make_model(tmp_path / "models" / "a", 0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model = rb.Student(**student)
    job = make_job({"a": "models/a"}, Path("store"), student=model, training=TRAINING)
    preparation = prepare(job, tmp_path / "data")
    plan, pool = distill_plan(job, preparation), LocalPool(preparation, StoreSpec.of(job.labels))
    monkeypatch.chdir("elsewhere")
    build_training(plan, World(), pool).run(Recorder())


def test_the_same_without_teachers(tmp_path, monkeypatch):
    make_model(tmp_path / "models" / "a", 0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    tasks = make_job({"a": "models/a"}, Path("store")).tasks
    job = rb.TrainJob(tasks=tasks, model=rb.Student(model="models/a"), training=TRAINING)
    plan = supervised_plan(job, prepare_supervised(job, tmp_path / "data"))
    monkeypatch.chdir("elsewhere")
    build_training(plan, World(), None).run(Recorder())
