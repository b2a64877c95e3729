"""Epochs against a bare loop: a warm one, a first one that labels, and both through Ray."""

import shutil
import tempfile
import time
from pathlib import Path

import ray
import torch
from ray.train import RunConfig, ScalingConfig

import raybrew as rb
from experiments.benchmarks.measuring import Record, interleaved, ratio
from experiments.benchmarks.student import (
    MINI,
    SMALLEST,
    Setting,
    bare_loop,
    label,
    load,
    mr_setting,
    on_one_core,
    timed_run,
)
from raybrew.teachers.teacher import ModelTeacher


def warm_epoch(num_rows: int = 1600, rounds: int = 41) -> list[Record]:
    """Measure an epoch whose labels are in the store, against a bare loop with the logits in RAM.

    The bare loop has the same model, batches, optimizer, schedule and clipping, and nothing else:
    no store, no seeds, no metrics.
    """
    on_one_core()
    with tempfile.TemporaryDirectory(prefix="raybrew-bench-") as folder:
        return measure_warm_epoch(mr_setting(Path(folder), num_rows, SMALLEST), rounds)


def measure_warm_epoch(setting: Setting, rounds: int) -> list[Record]:
    job = setting.job("store", num_epochs=1)
    preparation = setting.prepared(job)
    _, pool = setting.training(job, preparation)
    teacher_logits = label(preparation, pool)
    split = preparation.tasks[0].split("train")
    waits: list[float] = []

    def ours() -> float:
        training, _ = setting.training(job, preparation)
        seconds = timed_run(training)
        waits.append(training.waited_s / seconds)
        return seconds

    def bare() -> float:
        return bare_loop(setting.training(job, preparation)[0], split, teacher_logits)

    bare()
    ours()
    waits.clear()
    times = interleaved({"ours": ours, "bare": bare}, rounds, what="warm epoch")
    note = (
        f"{len(setting.rows)} sentences of MR, batches of 32 padded to their longest, BERT-tiny "
        f"student (2 × 128), 3 teachers' logits, AdamW fused in both, one core; "
        f"bare epoch {min(times['bare']):.2f} s; Ray's start-up is not in it"
    )
    return [
        ratio(
            "warm epoch against a bare loop",
            times["ours"],
            times["bare"],
            to_reach=("≤", 1.03),
            note=note,
        ),
        ratio(
            "student's wait for labels, warm",
            waits,
            [1.0] * len(waits),
            to_reach=("≤", 0.01),
            unit="of the step",
            note="share of the same epochs that the student stood still for labels and batches",
        ),
    ]


def first_epoch(num_rows: int = 1024, rounds: int = 5) -> list[Record]:
    """Measure an epoch whose labels are computed on the way, against teachers and a bare loop.

    All of it runs on one core, so that no overlap hides work: what is compared is the sum of the
    teachers' forwards, on batches sorted by length over all rows, and of a bare loop with their
    logits in RAM.
    """
    on_one_core()
    with tempfile.TemporaryDirectory(prefix="raybrew-bench-") as folder:
        return [measure_first_epoch(mr_setting(Path(folder), num_rows, MINI), rounds)]


def measure_first_epoch(setting: Setting, rounds: int) -> Record:
    job = setting.job("store", num_epochs=1)
    preparation = setting.prepared(job)
    split = preparation.tasks[0].split("train")
    teachers = [ModelTeacher(each) for each in preparation.teachers]
    signals = preparation.teachers[0].signals

    def apart() -> float:
        start = time.perf_counter()
        answers = [teacher.answer(split.student, signals) for teacher in teachers]
        forward_s = time.perf_counter() - start
        logits = [torch.from_numpy(each.values) for one in answers for each in one.values()]
        training, _ = setting.training(job, preparation)
        return forward_s + bare_loop(training, split, torch.stack(logits))

    def on_the_way() -> float:
        shutil.rmtree(setting.folder / "store", ignore_errors=True)
        training, pool = setting.training(job, preparation)
        load(pool)
        return timed_run(training)

    times = interleaved({"on the way": on_the_way, "apart": apart}, rounds, what="first epoch")
    return ratio(
        "first epoch, labels on the way, against teachers + bare loop",
        times["on the way"],
        times["apart"],
        to_reach=("≤", 1.10),
        note=f"{len(setting.rows)} sentences of MR, 3 BERT-mini teachers (4 × 256, 512 tokens a "
        f"forward), BERT-tiny student, all on one core; teachers and bare loop apart "
        f"{min(times['apart']):.1f} s; the store is written in it",
    )


CPUS = 4
"""That Ray hands out: three replicas, the student and Ray Train's own fit; they share one core."""


def under_ray(num_rows: int = 1024, warm_epochs: int = 6, rounds: int = 3) -> list[Record]:
    """Measure epochs through a real pool and Ray Train, against teachers and a bare loop.

    The other figures of an epoch are measured in one process, without actors and without an object
    store. Here `rb.distill` runs as a user runs it: replicas are Ray actors, the student is a Ray
    Train worker. Everything, Ray's own processes included, has one core, as what it is compared
    with has, so no overlap hides work. The time is that of the student's loop, from its first step
    to its last, with the time that it waits for labels; start-up, evaluation and export are apart.
    """
    on_one_core()
    ray.init(num_cpus=CPUS, log_to_driver=False, include_dashboard=False)
    try:
        with tempfile.TemporaryDirectory(prefix="raybrew-bench-") as folder:
            return measure_under_ray(mr_setting(Path(folder), num_rows, MINI), warm_epochs, rounds)
    finally:
        ray.shutdown()


def measure_under_ray(setting: Setting, warm_epochs: int, rounds: int) -> list[Record]:
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
            to_reach=("≤", 1.10),
            note=f"{note}teachers and bare loop apart {min(cold['apart']):.1f} s",
        ),
        ratio(
            "warm epoch under Ray Train, against a bare loop",
            again["ray"],
            again["bare"],
            to_reach=("≤", 1.03),
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
