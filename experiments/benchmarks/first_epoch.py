"""An epoch whose labels are computed on the way, against teachers alone and a bare loop.

All of it on one core, so that no overlap hides work: what is compared is the sum of the teachers'
forwards, on batches sorted by length over all rows, and of a bare loop with their logits in RAM.
"""

import shutil
import tempfile
import time
from pathlib import Path

import torch

from experiments.benchmarks.interleave import interleaved
from experiments.benchmarks.record import Record, ratio
from experiments.benchmarks.student_setting import (
    MINI,
    Setting,
    bare_loop,
    load,
    mr_setting,
    on_one_core,
    timed_run,
)
from raybrew.teachers.teacher import ModelTeacher

NUM_ROWS, ROUNDS = 1024, 5


def records(num_rows: int = NUM_ROWS, rounds: int = ROUNDS) -> list[Record]:
    on_one_core()
    with tempfile.TemporaryDirectory(prefix="raybrew-bench-") as folder:
        return [measured(mr_setting(Path(folder), num_rows, MINI), rounds)]


def measured(setting: Setting, rounds: int) -> Record:
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
        target=1.10,
        bound="≤",
        note=f"{len(setting.rows)} sentences of MR, 3 BERT-mini teachers (4 × 256, 512 tokens a "
        f"forward), BERT-tiny student, all on one core; teachers and bare loop apart "
        f"{min(times['apart']):.1f} s; the store is written in it",
    )
