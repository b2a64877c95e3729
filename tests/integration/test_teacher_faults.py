"""Teachers that die, hang or lag during a run: the same student, exact counts, a line in the log.

The teacher's answers are rounded (see `tests.teachers.faulty`), so that a label has the same bits
whatever forward it was computed in, and the students' weights can be compared bit for bit.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ray.train import RunConfig, ScalingConfig
from safetensors.torch import load_file

import raybrew as rb
from tests.made import make_job
from tests.teachers import faulty

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

UNIQUE = 84 + 30  # rows of make_job's data that differ


@pytest.fixture(autouse=True)
def faults(cluster) -> Iterator[None]:
    faulty.clear()
    yield
    faulty.clear()


def run(models, folder: Path, replicas: int = 2, **teacher) -> rb.RunResult:
    host = {"replicas": replicas, "resources": {"CPU": 0.5}, "batch_tokens": 64, **teacher}
    adaptor = "tests.teachers.faulty:faulty"
    job = make_job(
        models,
        folder / "store",
        teachers=[rb.Teacher(name="a", task="sum", model=models["a"], adaptor=adaptor, **host)],
    )
    return rb.distill(
        job,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="run", storage_path=str(folder)),
    )


def weights(result: rb.RunResult) -> dict[str, torch.Tensor]:
    return load_file(Path(result.student, "model.safetensors"))


def survived(result: rb.RunResult) -> list[str]:
    return [f"{event['fault']}: {event['who']}: {event['what']}" for event in result.survived]


@pytest.fixture(scope="module")
def undisturbed(models, cluster, tmp_path_factory) -> dict[str, torch.Tensor]:
    faulty.clear()
    result = run(models, tmp_path_factory.mktemp("undisturbed"))
    assert result.labels["forwards"] == result.labels["needed"] == UNIQUE
    assert result.labels["losses"] == 0
    assert result.survived == []
    return weights(result)


def assert_same(result: rb.RunResult, expected: dict[str, torch.Tensor]) -> None:
    found = weights(result)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    labels = result.labels
    # Every label once, but for those that died with a replica before they were on disk.
    assert labels["forwards"] == labels["needed"] + labels["recomputed"]
    assert labels["needed"] == UNIQUE


def test_a_replica_killed_in_the_middle_of_a_forward(models, tmp_path, undisturbed):
    faulty.plan("kill-1")
    result = run(models, tmp_path)
    assert_same(result, undisturbed)
    assert result.labels["losses"] == 1
    assert result.labels["retried"] >= 1
    # What was begun: all that was reported, and what the killed forward had in hand.
    begun = sum(map(sum, faulty.forwards().values()))
    assert result.labels["forwards"] < begun <= result.labels["forwards"] + UNIQUE
    (line,) = [line for line in survived(result) if line.startswith("replica lost")]
    assert "teacher 'a', replica" in line


def test_all_replicas_killed_at_once(models, tmp_path, undisturbed):
    faulty.plan("sleep", "0.3")

    def kill_both() -> None:
        while len(faulty.forwards()) < 2:
            time.sleep(0.05)
        time.sleep(0.1)
        for pid in faulty.forwards():
            os.kill(pid, signal.SIGKILL)
        (faulty.folder() / "sleep").unlink()

    killer = threading.Thread(target=kill_both)
    killer.start()
    result = run(models, tmp_path)
    killer.join()
    assert_same(result, undisturbed)
    assert result.labels["losses"] == 2
    (down,) = [event for event in result.survived if event["fault"] == "teacher down"]
    assert down["lost_s"] > 0


def test_a_replica_that_hangs_is_ended_after_its_deadline(models, tmp_path, undisturbed):
    faulty.plan("hang-1")
    start = time.monotonic()
    result = run(models, tmp_path, deadline_s=2)
    assert_same(result, undisturbed)
    assert result.labels["losses"] == 1
    assert any("hung for" in line for line in survived(result))
    assert time.monotonic() - start < 300  # and not the hour that it sleeps


def test_a_replica_ten_times_slower_than_its_sister(models, tmp_path, undisturbed):
    faulty.plan("sleep", "0.05")
    faulty.plan("slow", "0.5")
    result = run(models, tmp_path)
    assert_same(result, undisturbed)
    assert result.labels["losses"] == result.labels["retried"] == 0
    assert result.labels["forwards"] == UNIQUE
    slow, fast = sorted(map(sum, faulty.forwards().values()))
    assert slow < fast


def test_a_teacher_whose_replicas_always_die_fails_the_run_and_is_named(models, tmp_path):
    for number in range(40):
        faulty.plan(f"kill-{number:02}")
    with pytest.raises(rb.TeacherError, match=r"'a'.*(no replica|replicas were lost)"):
        run(models, tmp_path, replicas=1)


@pytest.mark.long
def test_the_node_with_the_teacher_dies(models, tmp_path, undisturbed):
    command = [sys.executable, "-m", "tests.integration.node_of_teachers"]
    # A cluster of its own, in a process of its own: this one is connected to another Ray.
    done = subprocess.run(
        [*command, str(tmp_path), models["a"]], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result = rb.RunResult(**json.loads(done.stdout.splitlines()[-1]))
    assert_same(result, undisturbed)
    assert result.labels["losses"] == 2
    assert any(event["fault"] == "teacher down" for event in result.survived)
