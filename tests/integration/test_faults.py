"""Real faults on a real cluster of several nodes: whatever dies, the student comes out the same."""

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import raybrew as rb
from raybrew.labels.location import LocalLocation
from raybrew.labels.shards import Shard, write_shard
from tests.integration import fault_lab, lab_cluster
from tests.integration.fault_lab import Outcome, Strike
from tests.made import STUDENT_CONFIG, make_job
from tests.traces import temporaries
from tests.training.in_process import Recorder, build

pytestmark = [pytest.mark.ray, pytest.mark.long]

STEPS, EVERY = 36, 4


class Lab:
    """The lab's process; each call runs in it, and may not take forever."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context)
        self.address: str = self(lab_cluster.start)

    def __call__(self, function: Any, *arguments: Any, **named: Any) -> Any:
        return self._pool.submit(function, *arguments, **named).result(fault_lab.WAIT_S)

    def close(self) -> None:
        self(lab_cluster.stop)
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
    adaptor = "tests.integration.slow_adaptors:rounded"
    return make_job(
        models,
        store,
        teachers=[
            rb.Teacher(
                name=name,
                task="sum",
                model=model,
                adaptor=adaptor,
                resources={"CPU": 0.25, "teacher": 1},
            )
            for name, model in models.items()
        ],
        student=rb.Student(config=STUDENT_CONFIG, adaptor="tests.integration.slow_adaptors:slow"),
        training=rb.TrainingConfig(**{**settings, "checkpoint_every": EVERY, **training}),
    )


@pytest.fixture(scope="module")
def whole(lab: Lab, models, store, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The run that nothing hits; it fills the store for the others."""
    folder = str(tmp_path_factory.mktemp("whole"))
    lab(fault_lab.fill, job(models, store), folder)
    outcome = lab(fault_lab.run, job(models, store), folder)
    assert outcome.result, outcome.error
    assert outcome.result["recovered"] == []
    print(f"undisturbed: {outcome.wall_s:.1f} s")
    return outcome


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    return load_file(Path(outcome.result["student"], "model.safetensors"))


def losses(outcome: Outcome) -> list[float]:
    """Return the loss of each step, of those that were taken twice the last."""
    lines = Path(outcome.result["folder"], "metrics.jsonl").read_text().splitlines()
    read = [json.loads(line) for line in lines]
    by_step = {line["step"]: line["train/sum/loss"] for line in read if "train/sum/loss" in line}
    assert sorted(by_step) == list(range(1, STEPS + 1))
    return [by_step[step] for step in sorted(by_step)]


def assert_same_weights(outcome: Outcome, whole: Outcome) -> None:
    assert outcome.result, outcome.error
    expected = weights(whole)
    for name, value in weights(outcome).items():
        assert torch.equal(value, expected[name]), name


def assert_same_student(outcome: Outcome, whole: Outcome) -> None:
    assert_same_weights(outcome, whole)
    assert outcome.result["metrics"]["eval/score"] == whole.result["metrics"]["eval/score"]
    # Every label was in the store: no teacher was asked, whatever died.
    counts = outcome.result["labels"]
    assert counts["needed"] == counts["in_store"] == whole.result["labels"]["needed"]
    assert counts["forwards"] == counts["misses"] == 0


NOTHING = {"actors": [], "groups": [], "processes": []}


def assert_nothing_left(lab: Lab, store: Path, folder: Path) -> None:
    assert lab(lab_cluster.leftovers) == NOTHING
    assert temporaries(store, folder) == []


def recoveries(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the faults that training started again after: of each start the first."""
    recovered = outcome.result["recovered"]
    return [event for event in recovered if "went on after" in event["what"] and event["lost_s"]]


def assert_went_on(struck: str, event: dict[str, Any], fault: str, most_steps: int) -> None:
    assert event["fault"] == fault
    # None is lost where the fault strikes right behind a checkpoint.
    assert 0 <= event["lost_steps"] <= most_steps
    print(f"{struck}: {event['lost_s']} s, {event['lost_steps']} steps")


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
    for event, (struck, expected) in zip(recoveries(outcome), faults.items(), strict=True):
        assert_went_on(struck, event, expected, 3 * EVERY)
    others = {event["fault"] for event in outcome.result["recovered"]}
    assert others <= {"rank died", "rank failed", "controller died"}
    assert_nothing_left(lab, store, tmp_path)


def test_wandb_and_memory_are_lost_and_a_node_is_taken_away(lab, models, store, whole, tmp_path):
    rarely = job(models, store, checkpoint_every=STEPS).model_copy(
        update={"tracking": rb.TrackingConfig(wandb=True, log_every=1, progress=False)}
    )
    faults = ("wandb_dies", "object_store_fills", "node_is_preempted")
    strikes = [Strike(fault, step) for fault, step in zip(faults, (3, 5, 8), strict=True)]
    outcome = lab(fault_lab.run, rarely, str(tmp_path), strikes)
    assert_same_student(outcome, whole)
    recovered = {event["fault"]: event for event in outcome.result["recovered"]}
    assert recovered.keys() >= {"W&B lost", "object store spilled", "preemption"}
    lines = Path(outcome.result["folder"], "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line).get("step") for line in lines]
    assert set(range(1, STEPS + 1)) <= set(steps)
    # It goes on from what was saved when the node was announced to go, not from the beginning.
    assert "are being taken away; saved at once" in recovered["preemption"]["what"]
    (died,) = recoveries(outcome)
    assert_went_on("node_is_preempted", died, "rank died", 14)
    assert_nothing_left(lab, store, tmp_path)


PART = 38
"""Labels of a shard: three hold what a teacher was asked for."""


def split_up(store: Path, copy: Path) -> dict[str, int]:
    """Copy a store, in smaller shards; return how many labels each shard has."""
    counts: dict[str, int] = {}
    location = LocalLocation(copy)
    for path in store.rglob("shard-*.arrow"):
        folder = "/".join(path.parts[-3:-1])
        shard = Shard(path, folder)
        for start in range(0, len(shard.keys), PART):
            stop = min(start + PART, len(shard.keys))
            part = shard.keys[start:stop], shard.payload.slice(start, stop)
            written = write_shard(location, folder, *part)
            counts[Path(written).name] = stop - start
    return counts


def test_shards_are_damaged_and_deleted_while_the_student_learns_from_them(
    lab, models, store, whole, tmp_path
):
    counts = split_up(store, tmp_path / "store")
    # At first the loss is not noticed. Then labels are missing and no teacher is up; then one is.
    faults = ("shard_is_deleted", "shard_is_flipped", "shard_is_cut_short")
    strikes = [Strike(fault, step) for fault, step in zip(faults, (3, 8, 18), strict=True)]
    outcome = lab(fault_lab.run, job(models, tmp_path / "store"), str(tmp_path / "run"), strikes)
    assert_same_weights(outcome, whole)
    shards = {path.name for path in (tmp_path / "store").rglob("shard-*")}
    deleted = counts.keys() - shards
    damaged = {name.removesuffix(".damaged") for name in shards if name.endswith(".damaged")}
    assert len(deleted) == 3
    assert len(damaged) == 2
    labels = outcome.result["labels"]
    assert labels["needed"] == labels["in_store"] == sum(counts.values())
    # What was lost, each once.
    assert labels["forwards"] == sum(counts[name] for name in deleted)
    recovered = outcome.result["recovered"]
    messages = [event["what"] for event in recovered if event["fault"] == "label shard damaged"]
    assert len(messages) == 2
    assert all(any(name in what for what in messages) for name in damaged)
    lost = next(event for event in recovered if event["fault"] == "labels lost")
    assert "labels are missing from the store" in lost["what"]
    assert_went_on("shard_is_flipped", lost, "labels lost", 3 * EVERY)
    assert_nothing_left(lab, tmp_path / "store", tmp_path / "run")


PLAIN = {**STUDENT_CONFIG, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def test_workers_go_and_come_back_and_the_batches_stay_the_same(
    lab, models, store, whole, tmp_path
):
    """Two workers add up other parts than one: float32's last bits differ, nothing else does.

    With SGD, that is: Adam makes steps of the same size out of gradients that are all rounding.
    """
    plain = job(models, store, optimizer="SGD", learning_rate=0.1)
    adaptor = "tests.integration.slow_adaptors:alone_until_the_others_come"
    elastic = plain.model_copy(update={"student": rb.Student(config=PLAIN, adaptor=adaptor)})
    alone = plain.model_copy(update={"student": rb.Student(config=PLAIN)})
    one, _ = build(alone, tmp_path / "1")
    recorder = Recorder()
    one.run(recorder)
    strikes = [Strike("nodes_leave", 6), Strike("nodes_come_back", 0)]
    outcome = lab(
        fault_lab.run,
        elastic,
        str(tmp_path / "2"),
        strikes,
        (1, 2),
        elastic_resize_monitor_interval_s=1.0,
    )
    assert outcome.result, outcome.error
    # It began with two, or `nodes_leave` would have failed.
    went, came = recoveries(outcome)
    assert went["what"].endswith("with 1 worker")
    assert came["what"].startswith("1 worker before;")
    assert came["what"].endswith("with 2 workers")
    assert_went_on("nodes_leave", went, "rank died", 3 * EVERY)
    assert_went_on("nodes_come_back", came, "workers changed", 3 * EVERY)
    np.testing.assert_allclose(losses(outcome), recorder.term("sum"), atol=1e-6, rtol=0)
    for name, value in weights(outcome).items():
        torch.testing.assert_close(value, one.model.state_dict()[name], atol=1e-6, rtol=0)
    assert_nothing_left(lab, store, tmp_path)
