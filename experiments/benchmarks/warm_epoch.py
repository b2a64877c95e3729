"""An epoch whose labels are in the store, against a bare loop with the same logits in RAM.

The bare loop has the same model, batches, optimizer, schedule and clipping, and nothing else: no
store, no seeds, no figures.
"""

import tempfile
from pathlib import Path

from experiments.benchmarks.interleave import interleaved
from experiments.benchmarks.record import Record, ratio
from experiments.benchmarks.student_setting import (
    SMALLEST,
    Setting,
    bare_loop,
    label,
    mr_setting,
    on_one_core,
    timed_run,
)

NUM_ROWS, ROUNDS = 1600, 41


def records(num_rows: int = NUM_ROWS, rounds: int = ROUNDS) -> list[Record]:
    on_one_core()
    with tempfile.TemporaryDirectory(prefix="raybrew-bench-") as folder:
        return measured(mr_setting(Path(folder), num_rows, SMALLEST), rounds)


def measured(setting: Setting, rounds: int) -> list[Record]:
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
            target=1.03,
            bound="≤",
            note=note,
        ),
        ratio(
            "student's wait for labels, warm",
            waits,
            [1.0] * len(waits),
            target=0.01,
            bound="≤",
            unit="of the step",
            note="share of the same epochs that the student stood still for labels and batches",
        ),
    ]
