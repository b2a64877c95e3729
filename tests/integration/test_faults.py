"""Real faults on a real cluster of several nodes: whatever dies, the student comes out the same."""

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
        self.address: str = self(fault_lab.start, 3)

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
    # None is lost where the fault strikes right behind a checkpoint.
    assert 0 <= event["lost_steps"] <= 3 * EVERY
    assert event["lost_s"] > 0
    assert {each["fault"] for each in more} <= {"rank died", "rank failed"}
    print(
        f"{fault}: {event['lost_s']} s, {event['lost_steps']} steps; "
        f"{outcome.wall_s:.1f} s for {whole.wall_s:.1f} s"
    )
    assert lab(fault_lab.leftovers) == {"actors": [], "groups": []}
