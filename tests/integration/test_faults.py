"""Real faults on a real cluster of several nodes: whatever dies, the student comes out the same."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import raybrew as rb
from tests.integration import fault_lab
from tests.integration.fault_lab import Outcome, Strike
from tests.made import STUDENT_CONFIG, make_data, make_job

pytestmark = [pytest.mark.ray, pytest.mark.long]

STEPS, EVERY = 36, 4


class Lab:
    """The lab's process; each call runs in it, and may not take forever."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context)
        self.address: str = self(fault_lab.start)

    def __call__(self, function: Any, *arguments: Any, **named: Any) -> Any:
        return self._pool.submit(function, *arguments, **named).result(fault_lab.WAIT_S)

    def close(self) -> None:
        self(fault_lab.stop)
        self._pool.shutdown()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults") / "store"


def job(models: dict[str, str], store: Path, **training: Any) -> rb.DistillJob:
    settings = {"num_steps": STEPS, "batch_size": 16, "learning_rate": 1e-3, "num_threads": 1}
    return make_job(
        models,
        store,
        student=rb.Student(config=STUDENT_CONFIG, adaptor="tests.integration.slow_adaptors:slow"),
        training=rb.TrainingConfig(**{**settings, "checkpoint_every": EVERY, **training}),
    )


@pytest.fixture(scope="module")
def whole(lab: Lab, models, store, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The run that nothing befalls; it fills the store for the others."""
    folder = str(tmp_path_factory.mktemp("whole"))
    lab(fault_lab.run, job(models, store, num_steps=6), folder + "/fill")
    outcome = lab(fault_lab.run, job(models, store), folder)
    assert outcome.result, outcome.error
    assert outcome.result["survived"] == []
    return outcome


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    return load_file(Path(outcome.result["student"], "model.safetensors"))


def assert_same_student(outcome: Outcome, whole: Outcome) -> None:
    assert outcome.result, outcome.error
    expected = weights(whole)
    for name, value in weights(outcome).items():
        assert torch.equal(value, expected[name]), name
    assert outcome.result["metrics"]["eval/score"] == whole.result["metrics"]["eval/score"]
    # Every label was in the store: nobody asked a teacher, whatever died.
    counts = outcome.result["labels"]
    assert counts["needed"] == counts["in_store"] == whole.result["labels"]["needed"]
    assert counts["forwards"] == counts["misses"] == 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("rank_dies", "rank died"),
        ("all_ranks_die", "rank died"),
        ("controller_dies", "controller died"),
        ("node_dies", "rank died"),
    ],
)
def test_whatever_dies_the_student_comes_out_the_same(
    fault, said, lab, models, store, whole, tmp_path
):
    outcome = lab(fault_lab.run, job(models, store), str(tmp_path), [Strike(fault, 14)])
    assert_same_student(outcome, whole)
    (event, *more) = outcome.result["survived"]
    assert event["fault"] == said
    assert "went on after step" in event["what"]
    assert 0 < event["lost_steps"] <= 3 * EVERY
    assert event["lost_s"] > 0
    assert {each["fault"] for each in more} <= {"rank died", "rank failed"}
    print(
        f"{fault}: {event['lost_s']} s, {event['lost_steps']} steps; "
        f"{outcome.wall_s:.1f} s for {whole.wall_s:.1f} s"
    )
    assert lab(fault_lab.leftovers) == {"actors": [], "groups": []}


def close_to(outcome: Outcome, whole: Outcome, atol: float) -> None:
    assert outcome.result, outcome.error
    expected = weights(whole)
    for name, value in weights(outcome).items():
        torch.testing.assert_close(value, expected[name], atol=atol, rtol=0)


def faults(outcome: Outcome) -> set[str]:
    return {event["fault"] for event in outcome.result["survived"]}


def test_wandb_dies_and_the_object_store_spills(lab, models, store, whole, tmp_path):
    changed = job(models, store).model_copy(
        update={"tracking": rb.TrackingConfig(wandb=True, log_every=1, progress=False)}
    )
    strikes = [Strike("wandb_dies", 8), Strike("object_store_fills", 12)]
    outcome = lab(fault_lab.run, changed, str(tmp_path), strikes)
    assert_same_student(outcome, whole)
    assert faults(outcome) == {"W&B lost", "object store spilled"}
    lines = Path(outcome.result["folder"], "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line).get("step") for line in lines]
    assert set(range(1, STEPS + 1)) <= set(steps)


def test_labels_that_vanish_during_the_run_are_computed_again(lab, models, whole, tmp_path):
    changed = job(models, tmp_path / "store")
    outcome = lab(fault_lab.run, changed, str(tmp_path), [Strike("labels_vanish", 14)])
    # The labels came in other batches than those of `whole`: they differ in their last bits.
    close_to(outcome, whole, atol=1e-4)
    counts = outcome.result["labels"]
    assert counts["in_store"] == 0
    # Nothing was asked twice: what the workers had mapped they kept, the rest came after.
    assert counts["forwards"] == counts["needed"] == whole.result["labels"]["needed"]


NO_DROPOUT = {**STUDENT_CONFIG, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def test_workers_come_and_go_and_the_batches_stay_the_same(lab, models, store, whole, tmp_path):
    long = job(models, store, num_steps=160)
    elastic = long.model_copy(
        update={"student": long.student.model_copy(update={"config": NO_DROPOUT})}
    )
    fast = rb.Student(config=NO_DROPOUT)
    one = lab(
        fault_lab.run, elastic.model_copy(update={"student": fast}), str(tmp_path / "1"), [], 1
    )
    strikes = [Strike("nodes_leave", 14), Strike("nodes_join", 40)]
    outcome = lab(
        fault_lab.run,
        elastic,
        str(tmp_path / "2"),
        strikes,
        (1, 2),
        elastic_resize_monitor_interval_s=1.0,
    )
    close_to(outcome, one, atol=1e-4)
    said = [event["what"] for event in outcome.result["survived"]]
    assert any(what.endswith("with 1 worker") for what in said), said
    assert said[-1].endswith("with 2 workers"), said
    print("elastic:", said)


def test_a_loss_that_is_not_a_number_is_one_answer_on_all_ranks(lab, models, store, tmp_path):
    adaptor = "tests.integration.slow_adaptors:nan_at_a_word"
    broken = job(models, store, on_nan="skip").model_copy(
        update={"student": rb.Student(config=STUDENT_CONFIG, adaptor=adaptor)}
    )
    outcome = lab(fault_lab.run, broken, str(tmp_path / "skip"))
    assert outcome.result, outcome.error
    skipped = outcome.result["metrics"]["train/skipped_steps"]
    assert 0 < skipped < STEPS
    assert faults(outcome) == {"gradient not finite"}
    assert len(outcome.result["survived"]) == skipped
    assert all(value.isfinite().all() for value in weights(outcome).values())
    stop = broken.model_copy(
        update={"training": broken.training.model_copy(update={"on_nan": "stop"})}
    )
    outcome = lab(fault_lab.run, stop, str(tmp_path / "stop"))
    assert not outcome.result
    # Ours, and not tried again: it would come again.
    assert "TrainingError: training, step" in outcome.error.splitlines()[-1]
    assert lab(fault_lab.leftovers) == {"actors": [], "groups": []}


def start_cli(lab: Lab, job_file: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "raybrew", "distill", str(job_file), *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "RAY_ADDRESS": lab.address},
    )


def until(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + fault_lab.WAIT_S
    while fault_lab.step_of(folder) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def none_left(lab: Lab, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while (left := lab(fault_lab.leftovers)) != {"actors": [], "groups": []}:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def test_a_run_that_was_terminated_and_then_killed_goes_on_with_resume(
    lab, models, store, whole, tmp_path
):
    values = job(models, store).to_plain()
    for side, data in [("train", make_data(90, twice=6)), ("eval", make_data(30, seed=1))]:
        data.to_parquet(str(tmp_path / f"{side}.parquet"))
        values["tasks"][0][side] = f"{side}.parquet"
    values["scaling"] = {"num_workers": 2, "resources_per_worker": {"CPU": 1, "student": 1}}
    values["run"] = {"name": "run", "storage_path": str(tmp_path)}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    folder = tmp_path / "run"
    first = start_cli(lab, tmp_path / "job.yaml")
    until(folder, 10, first)
    first.terminate()
    _, said = first.communicate(timeout=60)
    assert first.returncode == 143, said
    assert "terminated; a run goes on with --resume" in said
    assert "Traceback" not in said
    none_left(lab, 5)
    assert not list(folder.rglob("*.tmp*"))
    second = start_cli(lab, tmp_path / "job.yaml", "--resume")
    until(folder, 22, second)
    second.kill()
    second.communicate(timeout=60)
    none_left(lab, 60)
    third = start_cli(lab, tmp_path / "job.yaml", "--resume")
    _, said = third.communicate(timeout=fault_lab.WAIT_S)
    assert third.returncode == 0, said
    report = json.loads((folder / "report.json").read_text())
    assert_same_student(Outcome(report), whole)
