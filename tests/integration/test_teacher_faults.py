"""Teachers that die, hang or lag during a run: the same student, counts, a line in the log.

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
from typing import Any

import pytest
import torch
from ray.train import RunConfig, ScalingConfig
from safetensors.torch import load_file

import raybrew as rb
from tests.integration.lab_cluster import alive
from tests.made import make_job
from tests.teachers import faulty
from tests.traces import temporaries

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

UNIQUE = 84 + 30  # rows of make_job's data that differ


@pytest.fixture(autouse=True)
def faults(cluster) -> Iterator[None]:
    faulty.clear()
    yield
    faulty.clear()


def run(
    models, folder: Path, replicas: int = 2, labels: dict[str, Any] | None = None, **teacher
) -> rb.RunResult:
    host = {"replicas": replicas, "resources": {"CPU": 0.5}, "batch_tokens": 64, **teacher}
    adaptor = "tests.teachers.faulty:faulty"
    store = folder / "store"
    job = make_job(
        models,
        store,
        teachers=[rb.Teacher(name="a", task="sum", model=models["a"], adaptor=adaptor, **host)],
        labels=rb.LabelConfig(store=str(store), window=3, **labels or {}),
    )
    return rb.distill(
        job,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="run", storage_path=str(folder)),
    )


def weights(result: rb.RunResult) -> dict[str, torch.Tensor]:
    return load_file(Path(result.student, "model.safetensors"))


def recovered(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records]
    return [message for message in messages if message.startswith("recovered: ")]


@pytest.fixture(scope="module")
def undisturbed(models, cluster, tmp_path_factory) -> rb.RunResult:
    faulty.clear()
    result = run(models, tmp_path_factory.mktemp("undisturbed"))
    assert result.labels["forwards"] == result.labels["needed"] == UNIQUE
    assert result.labels["losses"] == 0
    return result


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def say_cost(what: str, result: rb.RunResult, undisturbed: rb.RunResult) -> None:
    seconds = result.times["train"] - undisturbed.times["train"]
    print(f"{what}: {seconds:.1f} s, 0 steps")


def assert_same(result: rb.RunResult, undisturbed: rb.RunResult) -> None:
    assert_equal(weights(result), weights(undisturbed))
    labels = result.labels
    assert labels["needed"] == UNIQUE
    # What died with a replica before it was on disk was computed again; what a replica computed
    # after its last health check isn't counted.
    if not labels["losses"]:
        assert (labels["forwards"], labels["recomputed"]) == (UNIQUE, 0)
    assert temporaries(Path(result.folder).parent) == []


def test_a_replica_killed_in_a_forward_and_one_that_hangs(models, tmp_path, undisturbed, caplog):
    faulty.plan("kill-1")
    faulty.plan("hang-1")
    start = time.monotonic()
    result = run(models, tmp_path, deadline_s=10)
    assert time.monotonic() - start < 600  # and not the hour that the hanging one sleeps
    assert_same(result, undisturbed)
    assert result.labels["losses"] == 2
    assert result.labels["retried"] >= 2
    # Begun: all that was counted, and what the killed and the hanging forward had in hand.
    begun = sum(map(sum, faulty.forwards().values()))
    assert result.labels["forwards"] < begun <= result.labels["forwards"] + 2 * UNIQUE
    assert begun >= UNIQUE
    lost = [line for line in recovered(caplog) if "replica lost (teacher 'a', replica" in line]
    assert len(lost) == 2
    assert any("died" in line for line in lost)
    assert any("hung for" in line for line in lost)
    say_cost("a replica killed in a forward, one that hangs for 10 s", result, undisturbed)


def test_all_replicas_killed_at_once_and_one_ten_times_slower(
    models, tmp_path, undisturbed, caplog
):
    faulty.plan("sleep", "0.1")
    faulty.plan("slow", "1")

    def kill_both() -> None:
        while len(faulty.forwards()) < 2:
            time.sleep(0.02)
        for pid in faulty.forwards():
            os.kill(pid, signal.SIGKILL)
        faulty.plan("slow", "1")  # one of those that come after them is slow again

    killer = threading.Thread(target=kill_both)
    killer.start()
    result = run(models, tmp_path)
    killer.join()
    assert_same(result, undisturbed)
    assert result.labels["losses"] == 2
    assert result.labels["forwards"] <= sum(map(sum, faulty.forwards().values()))
    assert any("teacher down (teacher 'a'" in line for line in recovered(caplog))
    say_cost("all replicas killed, one ten times slower", result, undisturbed)


def test_the_router_is_killed_and_asks_the_replicas_what_they_did(
    models, tmp_path, undisturbed, caplog
):
    faulty.plan("sleep", "0.1")

    def kill_router() -> None:
        while sum(map(sum, faulty.forwards().values())) < UNIQUE / 2:
            time.sleep(0.02)
        (router,) = alive("_RouterActor")
        os.kill(router["Pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill_router)
    killer.start()
    result = run(models, tmp_path)
    killer.join()
    assert_same(result, undisturbed)
    assert result.labels["forwards"] == UNIQUE
    assert result.labels["losses"] == 0
    assert sum(map(sum, faulty.forwards().values())) == UNIQUE
    assert any("router died (the teachers' router)" in line for line in recovered(caplog))
    say_cost("the teachers' router killed", result, undisturbed)


def test_a_store_that_is_full_keeps_nothing_and_the_student_is_the_same(
    models, tmp_path, undisturbed, caplog
):
    # One replica: it has the labels in memory, so that each is computed once all the same.
    result = run(models, tmp_path, 1, {"max_bytes": 1, "on_full": "go_on"})
    assert_same(result, undisturbed)
    assert not list((tmp_path / "store").rglob("*.arrow"))
    (full,) = [event for event in result.recovered if event["fault"] == "label store full"]
    assert f"{UNIQUE} labels" in full["what"]
    assert any("label store full (teacher 'a')" in line for line in recovered(caplog))
    # The teacher's labels of the evaluation rows can't be read.
    assert result.teachers == {}
    say_cost("the store is full", result, undisturbed)


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
    # A process that is dying may answer once more after it was thought lost.
    assert result.labels["losses"] >= 2
    assert "recovered: teacher down (teacher 'a'" in done.stderr
    down = [event["lost_s"] for event in result.recovered if event["fault"] == "teacher down"]
    print(f"the node of all replicas killed: {sum(down)} s, 0 steps")


def test_a_teacher_that_is_gone_for_good_is_dropped_and_the_others_go_on(models, tmp_path, caplog):
    for number in range(40):
        faulty.plan(f"kill-{number:02}")
    host = {"resources": {"CPU": 0.5}, "adaptor": "tests.teachers.faulty:faulty"}
    teachers = [
        rb.Teacher(name="a", task="sum", model=models["a"], on_loss="drop", **host),
        rb.Teacher(name="b", task="sum", model=models["b"], resources={"CPU": 0.5}),
    ]
    result = rb.distill(
        make_job(models, tmp_path / "store", teachers=teachers),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="run", storage_path=str(tmp_path)),
    )
    # Nothing of `a` was ever had: the run is that of `b` alone.
    assert result.labels["dropped"] == 2 * 90
    assert result.labels["forwards"] == UNIQUE
    assert set(result.teachers) == {"b"}
    assert result.ensembles["sum"] == pytest.approx(result.teachers["b"])
    assert any("teacher dropped (teacher 'a'" in line for line in recovered(caplog))
    alone = rb.distill(
        make_job({"b": models["b"]}, tmp_path / "store"),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="alone", storage_path=str(tmp_path)),
    )
    assert_equal(weights(result), weights(alone))
