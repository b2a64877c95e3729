"""Three teachers, five epochs, against the published textbrewer, on one core.

Both train a copy of one student for as many steps on batches of 32 that are padded to their
longest. textbrewer's `MultiTeacherDistiller` runs with its caching off and on; ours labels all
sentences once, sorted by length, and trains from the store. Ours runs on textbrewer's batches, and
with `group_by_length` on batches of sentences of similar length. Teachers have the size of the
encoder of the experiments. How many times faster ours is depends on how much larger they are than
the student, whose steps both take: with smaller ones it is less.
"""

import copy
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from experiments.benchmarks.measuring import Record, interleaved, ratio
from experiments.benchmarks.student import (
    MINILM,
    TEMPERATURE,
    Setting,
    label,
    load,
    mr_setting,
    on_one_core,
    timed_run,
)
from raybrew.data.batch_sequence import BatchSequence
from raybrew.data.split import EncodedSplit, Padding, collate
from raybrew.training.job import ResolvedJob

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import textbrewer

NUM_ROWS, NUM_EPOCHS, ROUNDS = 384, 5, 3
TARGETS = {"on": 1.25, "off": 4.5}
# Without clipping and schedule: neither is textbrewer's own.
SAME_STEPS = {"max_grad_norm": None, "lr_scheduler": "constant", "warmup_ratio": 0.0}


def records(
    num_rows: int = NUM_ROWS, num_epochs: int = NUM_EPOCHS, rounds: int = ROUNDS
) -> list[Record]:
    on_one_core()
    with tempfile.TemporaryDirectory(prefix="raybrew-bench-") as folder:
        return measured(mr_setting(Path(folder), num_rows, MINILM), num_epochs, rounds)


def measured(setting: Setting, num_epochs: int, rounds: int) -> list[Record]:
    job = setting.job("store", num_epochs=num_epochs, **SAME_STEPS)
    grouped = setting.job("store", num_epochs=num_epochs, group_by_length=True, **SAME_STEPS)
    preparation = setting.prepared(job)
    theirs = Theirs(setting, preparation, num_epochs)

    def ours(which: Any) -> float:
        shutil.rmtree(setting.folder / "store", ignore_errors=True)
        training, pool = setting.training(which, preparation)
        load(pool)
        start = time.perf_counter()
        label(preparation, pool)
        return time.perf_counter() - start + timed_run(training)

    times = interleaved(
        {
            "same batches": lambda: ours(job),
            "sorted batches": lambda: ours(grouped),
            "off": lambda: theirs.train(caching=False)[0],
            "on": lambda: theirs.train(caching=True)[0],
        },
        rounds,
        what="against textbrewer",
    )
    note = (
        f"{len(setting.rows)} sentences of MR, {num_epochs} epochs of "
        f"{-(-len(setting.rows) // 32)} steps, 3 teachers of MiniLM's size (6 × 384), BERT-tiny "
        "student (2 × 128), one core, its AdamW as torch makes it by default, ours fused; medians "
        + ", ".join(f"{name} {np.median(each):.1f} s" for name, each in times.items())
    )
    return [
        ratio(
            f"faster than textbrewer, its caching {caching}, {batches}",
            times[caching],
            times[batches],
            to_reach=("≥", TARGETS[caching]),
            note=note,
        )
        for caching in TARGETS
        for batches in ("same batches", "sorted batches")
    ]


class Theirs:
    """The published textbrewer on the same teachers, student and batches."""

    def __init__(self, setting: Setting, preparation: ResolvedJob, num_epochs: int):
        job = setting.job("unused", num_epochs=num_epochs)
        training, _ = setting.training(job, preparation)
        self._student, self._num_epochs = training.model, num_epochs
        assert job.training.learning_rate is not None, "the benchmark's job names it"
        self._learning_rate, self._folder = job.training.learning_rate, setting.folder
        split = preparation.tasks[0].split("train")
        self._batches = lambda: _Batches(split, training.sequence)
        load: Any = AutoModelForSequenceClassification.from_pretrained
        self._teachers = [load(each.model).eval() for each in preparation.teachers]

    def train(self, *, caching: bool) -> tuple[float, nn.Module]:
        """Train a copy of the student; return the seconds that it took, and the copy."""
        student = copy.deepcopy(self._student)
        # Without types of its own: what they say of its arguments is guessed from their defaults.
        published: Any = textbrewer
        distiller = published.MultiTeacherDistiller(
            train_config=published.TrainingConfig(
                log_dir=None, output_dir=str(self._folder / "theirs"), device="cpu"
            ),
            distill_config=published.DistillationConfig(
                temperature=TEMPERATURE, hard_label_weight=0.5, is_caching_logits=caching
            ),
            model_T=self._teachers,
            model_S=student,
            adaptor_T=_adaptor,
            adaptor_S=_adaptor,
        )
        # Nothing is saved by either.
        distiller.save_and_callback = lambda *_: None
        optimizer = torch.optim.AdamW(student.parameters(), lr=self._learning_rate)
        batches = self._batches()
        start = time.perf_counter()
        with distiller:
            distiller.train(optimizer, batches, num_epochs=self._num_epochs)
        return time.perf_counter() - start, student


@dataclass
class _Batches:
    """Batches of one epoch after another, as a data loader gives them."""

    split: EncodedSplit
    sequence: BatchSequence
    _step: int = 0

    def __len__(self) -> int:
        return self.sequence.steps_per_epoch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(len(self)):
            _, rows = self.sequence.batch(self._step)
            self._step += 1
            labels = torch.from_numpy(self.split.labels[rows])
            yield {**collate(self.split.student, rows, Padding(0)), "labels": labels}


def _adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    return {"logits": outputs.logits, "losses": outputs.loss}
