"""An epoch through a real pool and Ray Train, against teachers and a bare loop in one process.

The other figures of an epoch are measured in one process, without actors and without an object
store. Here `rb.distill` runs as a user runs it: replicas are Ray actors, the student is a Ray Train
worker. Everything, Ray's own processes included, has one core, as what it is compared with has; so
no overlap hides work. Timed is the student's loop, from its first step to its last, with the time
that it waits for labels; start-up, evaluation and export are apart.
"""

import shutil
import tempfile
import time
from pathlib import Path

import ray
import torch
from ray.train import RunConfig, ScalingConfig

import raybrew as rb
from experiments.benchmarks.interleave import interleaved
from experiments.benchmarks.record import Record, ratio
from experiments.benchmarks.student_setting import MINI, Setting, bare_loop, mr_setting, on_one_core
from raybrew.teachers.teacher import ModelTeacher

NUM_ROWS, WARM_EPOCHS, ROUNDS = 1024, 6, 3
CPUS = 4
"""That Ray hands out: three replicas, the student and Ray Train's own fit; they share one core."""


def records(
    num_rows: int = NUM_ROWS, warm_epochs: int = WARM_EPOCHS, rounds: int = ROUNDS
) -> list[Record]:
    on_one_core()
    ray.init(num_cpus=CPUS, log_to_driver=False, include_dashboard=False)
    try:
        with tempfile.TemporaryDirectory(prefix="raybrew-bench-") as folder:
            return measured(mr_setting(Path(folder), num_rows, MINI), warm_epochs, rounds)
    finally:
        ray.shutdown()


def measured(setting: Setting, warm_epochs: int, rounds: int) -> list[Record]:
    first, warm = (setting.job("store", num_epochs=epochs) for epochs in (1, warm_epochs))
    preparation = setting.prepared(first)
    split = preparation.tasks[0].split("train")
    teachers = [ModelTeacher(each) for each in preparation.teachers]
    signals = preparation.teachers[0].signals

    def labelled() -> torch.Tensor:
        answers = [teacher.answer(split.student, signals) for teacher in teachers]
        return torch.stack([torch.from_numpy(a.values) for one in answers for a in one.values()])

    def bare(job: rb.DistillJob, logits: torch.Tensor) -> float:
        return bare_loop(setting.training(job, preparation)[0], split, logits)

    def apart() -> float:
        start = time.perf_counter()
        logits = labelled()
        return time.perf_counter() - start + bare(first, logits)

    def through_pool() -> float:
        shutil.rmtree(setting.folder / "store", ignore_errors=True)
        return distilled(setting, first, label_once=True)

    logits = labelled()
    cold = interleaved(
        {"pool": through_pool, "apart": apart}, rounds, what="first epoch through a pool"
    )
    again = interleaved(
        {
            "ray": lambda: distilled(setting, warm, label_once=False),
            "bare": lambda: bare(warm, logits),
        },
        rounds,
        what="warm epochs under Ray Train",
    )
    note = (
        f"{len(setting.rows)} sentences of MR, 3 BERT-mini teachers (4 × 256, 512 tokens a "
        "forward, a replica each), BERT-tiny student (2 × 128), one Ray Train worker, all "
        "processes on one core; start-up apart; "
    )
    return [
        ratio(
            "first epoch through a real pool on Ray, against teachers + bare loop",
            cold["pool"],
            cold["apart"],
            target=1.10,
            bound="≤",
            note=f"{note}teachers and bare loop apart {min(cold['apart']):.1f} s",
        ),
        ratio(
            "warm epoch under Ray Train, against a bare loop",
            again["ray"],
            again["bare"],
            target=1.03,
            bound="≤",
            note=f"{note}{warm_epochs} epochs, bare {min(again['bare']):.1f} s",
        ),
    ]


def distilled(setting: Setting, job: rb.DistillJob, *, label_once: bool) -> float:
    """Distil on Ray; return the seconds of the student's loop.

    Args:
        setting: where the run's folder goes.
        job: what to do.
        label_once: whether teachers compute every label in it, once; else they compute none.
    """
    name = f"run-{time.monotonic_ns()}"
    result = rb.distill(
        job,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name=name, storage_path=str(setting.folder / "runs")),
    )
    forwards, needed = result.labels["forwards"], result.labels["needed"]
    assert forwards == (needed if label_once else 0), result.labels
    steps = -(-len(setting.rows) // job.training.batch_size) * (job.training.num_epochs or 1)
    shutil.rmtree(setting.folder / "runs" / name)
    return result.metrics["time/step_s"] * steps
