"""Real faults on a real cluster of several nodes: whatever dies, the student comes out the same."""

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import raybrew as rb
from tests.integration import fault_lab
from tests.integration.fault_lab import Outcome, Strike
from tests.made import STUDENT_CONFIG, make_job

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
    lab(fault_lab.fill, job(models, store), folder)
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


def recoveries(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the faults that training started again after: of each start the first."""
    survived = outcome.result["survived"]
    return [event for event in survived if "went on after" in event["what"] and event["lost_s"]]


def assert_went_on(event: dict[str, Any], fault: str, most_steps: int) -> None:
    assert event["fault"] == fault
    # None is lost where the fault strikes right behind a checkpoint.
    assert 0 <= event["lost_steps"] <= most_steps
    print(f"{fault}: {event['lost_s']} s, {event['lost_steps']} steps")


@pytest.mark.parametrize(
    "faults",
    [
        {"rank_dies": "rank died", "all_ranks_die": "rank died"},
        {"controller_dies": "controller died", "node_dies": "rank died"},
    ],
    ids=" and ".join,
)
def test_whatever_dies_the_student_comes_out_the_same(faults, lab, models, store, whole, tmp_path):
    strikes = [Strike(fault, step) for fault, step in zip(faults, (9, 22), strict=True)]
    outcome = lab(fault_lab.run, job(models, store), str(tmp_path), strikes)
    assert_same_student(outcome, whole)
    for event, said in zip(recoveries(outcome), faults.values(), strict=True):
        assert_went_on(event, said, 3 * EVERY)
    others = {event["fault"] for event in outcome.result["survived"]}
    assert others <= {"rank died", "rank failed", "controller died"}
    print(f"{', '.join(faults)}: {outcome.wall_s:.1f} s for {whole.wall_s:.1f} s")
    assert lab(fault_lab.leftovers) == {"actors": [], "groups": []}


def test_wandb_and_memory_are_lost_and_a_node_is_taken_away(lab, models, store, whole, tmp_path):
    rarely = job(models, store, checkpoint_every=STEPS).model_copy(
        update={"tracking": rb.TrackingConfig(wandb=True, log_every=1, progress=False)}
    )
    faults = ("wandb_dies", "object_store_fills", "node_is_preempted")
    strikes = [Strike(fault, step) for fault, step in zip(faults, (3, 5, 8), strict=True)]
    outcome = lab(fault_lab.run, rarely, str(tmp_path), strikes)
    assert_same_student(outcome, whole)
    survived = {event["fault"]: event for event in outcome.result["survived"]}
    assert survived.keys() >= {"W&B lost", "object store spilled", "preemption"}
    lines = Path(outcome.result["folder"], "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line).get("step") for line in lines]
    assert set(range(1, STEPS + 1)) <= set(steps)
    # It goes on from what was saved when the node was said to go, not from the beginning.
    assert "are being taken away; saved at once" in survived["preemption"]["what"]
    (died,) = recoveries(outcome)
    assert_went_on(died, "rank died", 14)
    assert lab(fault_lab.leftovers) == {"actors": [], "groups": []}
