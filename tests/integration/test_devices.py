"""Whose device a run is on, what becomes of a sick one, and when teachers give theirs back."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import RunConfig, ScalingConfig
from safetensors.torch import load_file

import raybrew as rb
from raybrew.config.job_file import dump_yaml
from raybrew.labels.shards import Shard
from raybrew.runs import precompute
from tests.integration import strikes
from tests.integration.fault_lab import step_of
from tests.integration.lab_cluster import alive, wait_for
from tests.made import STUDENT_CONFIG, make_job
from tests.teachers import faulty

pytestmark = pytest.mark.ray

UNIQUE = 84 + 30  # rows of make_job's data that differ
HOST = {"resources": {"CPU": 0.5}, "batch_tokens": 64, "adaptor": "tests.teachers.faulty:faulty"}


@pytest.fixture
def faults(cluster) -> Iterator[None]:
    faulty.clear()
    yield
    faulty.clear()


def run(job: rb.DistillJob, folder: Path) -> rb.RunResult:
    return rb.distill(
        job,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="run", storage_path=str(folder)),
    )


def events(folder: Path) -> list[dict[str, Any]]:
    file = folder / "run" / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def read(path: Path) -> Shard:
    return Shard(path, "/".join(path.parts[-3:-1]))


def weights(result: rb.RunResult) -> dict[str, torch.Tensor]:
    return load_file(Path(result.student, "model.safetensors"))


@pytest.mark.usefixtures("faults")
def test_a_replica_whose_gpu_is_sick_is_given_up_and_its_neighbour_teaches(models, tmp_path):
    def job(folder: Path) -> rb.DistillJob:
        teacher = rb.Teacher(name="a", task="sum", model=models["a"], replicas=2, **HOST)
        return make_job(models, folder / "store", teachers=[teacher])

    well = run(job(tmp_path / "well"), tmp_path / "well")
    faulty.plan("sick")
    faulty.plan("sleep", "0.3")  # so that its neighbour hasn't done everything before it is back
    sick = run(job(tmp_path / "sick"), tmp_path / "sick")
    faults = [event["fault"] for event in sick.recovered]
    assert faults.count("replica failed") >= 1
    assert all("uncorrectable ECC" in e["what"] for e in sick.recovered if "failed" in e["fault"])
    assert sick.labels["forwards"] == sick.labels["needed"] == UNIQUE
    assert sick.labels["losses"] == faults.count("replica failed")
    for name, value in weights(well).items():
        assert torch.equal(weights(sick)[name], value), name


def slow_job(models: dict[str, str], store: Path, **teachers: Any) -> rb.DistillJob:
    """Return a job whose student takes its time, for twelve epochs of six steps."""
    training = {"num_epochs": 12, "batch_size": 16, "learning_rate": 1e-3, "num_threads": 1}
    return make_job(
        models,
        store,
        student=rb.Student(config=STUDENT_CONFIG, adaptor="tests.integration.slow_adaptors:slow"),
        training=rb.TrainingConfig(**training, checkpoint_every=6),
        **teachers,
    )


@pytest.mark.usefixtures("faults")
def test_teachers_leave_while_training_goes_on_and_come_back_for_a_label_that_is_lost(
    models, tmp_path, monkeypatch
):
    monkeypatch.setattr(precompute, "POLL_S", 0.2)
    seen: dict[str, Any] = {}

    def left() -> int:
        return [event["fault"] for event in events(tmp_path)].count("teacher left")

    def damage() -> None:
        wait_for(lambda: left() == 2, 120)
        wait_for(lambda: not alive("ReplicaHost"), 20)
        seen["left_at"] = step_of(tmp_path / "run")
        strikes.aim(tmp_path / "run", tmp_path / "store")
        # The last is struck: the largest, which has training labels.
        strikes._shards.sort(key=lambda path: len(read(path).keys))
        seen["lost"] = len(read(strikes._shards[-1]).keys)
        assert seen["lost"] > 30
        strikes.shard_is_flipped()
        wait_for(lambda: left() > 2, 120)
        seen["back_until"] = step_of(tmp_path / "run")

    thread = threading.Thread(target=damage)
    thread.start()
    result = run(slow_job(models, tmp_path / "store"), tmp_path)
    thread.join()
    # Long before the end the replicas have ended, and every label was computed once.
    assert 0 < seen["left_at"] <= 60
    assert seen["left_at"] <= seen["back_until"]
    faults = [event["fault"] for event in result.recovered]
    assert "labels lost" in faults
    assert "teacher left" not in faults
    labels = result.labels
    assert labels["needed"] == 2 * UNIQUE
    # Each once, and what was lost once more.
    assert labels["forwards"] == labels["needed"] + seen["lost"]
    assert set(result.teachers) == {"a", "b"}
    assert not alive("ReplicaHost")


@pytest.mark.usefixtures("faults")
def test_a_teacher_in_the_worker_is_unloaded_after_its_last_label(models, tmp_path):
    inside = rb.Teacher(name="a", task="sum", model=models["a"], placement="worker")
    job = make_job(models, tmp_path / "store", teachers=[inside])
    result = run(job, tmp_path)
    assert result.labels["forwards"] == UNIQUE
    (event,) = events(tmp_path)
    assert (event["fault"], event["who"]) == ("teacher left", "teacher 'a'")
    assert "unloaded" in event["what"]
    assert result.recovered == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs that can't be used")
@pytest.mark.parametrize(
    ("settings", "who", "change"),
    [
        # The job says nothing of resources, and the cluster has GPUs.
        ([], "teacher 'a'", "set teachers[a].resources to {CPU: 1}"),
        (["teachers.a.resources.GPU=0.5"], "teacher 'a'", "set teachers[a].resources"),
        (
            ["teachers.a.resources.CPU=1", "scaling.use_gpu=true"],
            "a student worker",
            "set scaling.use_gpu to false",
        ),
    ],
    ids=["default", "half a GPU", "student"],
)
def test_gpus_that_pytorch_cannot_use_are_an_error_before_anything_is_loaded(
    models, tmp_path, settings, who, change
):
    job = make_job({"a": models["a"]}, tmp_path / "store")
    tasks = []
    for task in job.tasks:
        for side in ("train", "eval"):
            getattr(task, side).to_parquet(tmp_path / f"{side}.parquet")
        paths = {side: str(tmp_path / f"{side}.parquet") for side in ("train", "eval")}
        names = {"label_names": ("down", "level", "up")}
        tasks.append(task.model_copy(update=paths | names))
    teacher = rb.Teacher(name="a", task="sum", model=models["a"])
    job = job.model_copy(update={"tasks": tuple(tasks), "teachers": (teacher,)})
    file = tmp_path / "job.yaml"
    file.write_text(dump_yaml(job))
    # What a node with two GPUs tells Ray; here there are none.
    environment = {**os.environ, "RAY_OVERRIDE_RESOURCES": '{"GPU": 2}', "RAY_ADDRESS": "local"}
    places = [f"--set=run.storage_path={tmp_path / 'runs'}", "--set=run.name=run"]
    done = subprocess.run(
        [sys.executable, "-m", "raybrew", "distill", str(file), *places]
        + [f"--set={each}" for each in settings],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("raybrew: ")]
    assert who in line
    assert "can't use one" in line
    assert change in line
    assert not list((tmp_path / "runs").rglob("metrics.jsonl"))
