"""What the figures of the student are measured on: MR's sentences, a BERT-tiny student.

Sizes are those of the published models, weights are random: speed doesn't depend on them. The
whole distillation runs in one process, without Ray, so that what is compared is the work itself.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, get_scheduler

import raybrew as rb
from experiments.data import encoder, mr
from raybrew.data.split import STUDENT_VIEW, EncodedSplit, Padding, collate
from raybrew.labels.remote import StoreSpec
from raybrew.models.pretrained import quiet_transformers
from raybrew.runs.resolve import resolve_job
from raybrew.training.build import build_training
from raybrew.training.job import ResolvedJob
from raybrew.training.loop import StudentTraining
from raybrew.training.world import World
from tests.training.in_process import LocalPool, Recorder


def sizes_of(layers: int, hidden: int, heads: int, intermediate: int) -> dict[str, Any]:
    """Return what BERT's configuration calls the sizes of a model."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
    }


SMALLEST = sizes_of(1, 32, 1, 128)
TINY = sizes_of(2, 128, 2, 512)
MINI = sizes_of(4, 256, 4, 1024)
MINILM = sizes_of(6, 384, 12, 1536)
BATCH_SIZE = 32
TEMPERATURE = 4.0


@dataclass(frozen=True)
class Setting:
    """Where teachers, data and stores of a benchmark are.

    Args:
        folder: everything is below it.
        rows: training sentences, with columns `text` and `label`.
        tokenizer: folder of the tokenizer that all share.
        teacher: sizes of each of the three teachers.
        student: sizes of the student.
        batch_tokens: of a teacher's forward.
    """

    folder: Path
    rows: Dataset
    tokenizer: str
    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    batch_tokens: int = 512

    def job(self, store: str, teacher_dtype: Any = "float32", **training: Any) -> rb.DistillJob:
        """Return the job, with its labels in a store of this name."""
        return rb.DistillJob(
            tasks=[rb.Task(name="mr", train=self.rows, max_length=128)],
            teachers=[
                rb.Teacher(
                    name=name,
                    task="mr",
                    model=self._model(name, seed),
                    batch_tokens=self.batch_tokens,
                    dtype=teacher_dtype,
                )
                for seed, name in enumerate("abc")
            ],
            student=rb.Student(config=dict(self.student)),
            distillation=rb.DistillationConfig(temperature=TEMPERATURE, hard_label_weight=0.5),
            training=rb.TrainingConfig(
                **{
                    "batch_size": BATCH_SIZE,
                    "learning_rate": 1e-4,
                    "num_threads": 1,
                    # Nor does what ours is compared with save anything.
                    "checkpoint_every": 10**6,
                    **training,
                }
            ),
            labels=rb.LabelConfig(store=str(self.folder / store), window=16),
            tracking=rb.TrackingConfig(progress=False),
        )

    def prepared(self, job: rb.DistillJob) -> ResolvedJob:
        """Encode the data."""
        return resolve_job(job, self.folder / "data")

    def training(
        self, job: rb.DistillJob, preparation: ResolvedJob
    ) -> tuple[StudentTraining, LocalPool]:
        """Put the training together; the teachers are loaded when they are asked, or by `load`."""
        pool = LocalPool(preparation, job.labels.store)
        job_here = replace(preparation, config=job, store=StoreSpec.of(job.labels))
        return build_training(job_here, World(), pool), pool

    def _model(self, name: str, seed: int) -> str:
        folder = self.folder / name
        if not folder.exists():
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
            torch.manual_seed(seed)
            names = self.rows.features["label"].names
            sizes: dict[str, Any] = {
                "vocab_size": len(tokenizer),
                "id2label": dict(enumerate(names)),
                "label2id": {name: number for number, name in enumerate(names)},
                **self.teacher,
            }
            config = BertConfig(**sizes)
            with quiet_transformers():
                BertForSequenceClassification(config).save_pretrained(folder)
            tokenizer.save_pretrained(str(folder))
        return str(folder)


def mr_setting(
    folder: Path,
    num_rows: int,
    teacher: Mapping[str, Any],
    student: Mapping[str, Any] = TINY,
    batch_tokens: int = 512,
) -> Setting:
    """Return a setting on so many of MR's training sentences."""
    rows = mr()["train"].select(range(num_rows))
    return Setting(folder, rows, str(encoder()), teacher, student, batch_tokens)


def load(pool: LocalPool) -> None:
    """Load the teachers, which takes longer than what is measured."""
    for replica in pool.replicas.values():
        replica.load()


def label(preparation: ResolvedJob, pool: LocalPool) -> Tensor:
    """Have all training rows labelled, in one request a teacher; return (K, N, C)."""
    view = preparation.tasks[0].split("train").views[STUDENT_VIEW]
    logits = []
    for teacher in preparation.teachers:
        (answer,) = pool.ask(teacher.name, view, teacher.signals).result().values()
        logits.append(torch.from_numpy(answer.values))
    pool.flush()
    return torch.stack(logits)


class _Ended(Recorder):
    """Notes when the last step was taken, before the checkpoint of the end is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0.0

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        self.at = time.perf_counter()


def timed_run(training: StudentTraining) -> float:
    """Train to the end; return the seconds to the last step, as a bare loop is timed."""
    ended = _Ended()
    start = time.perf_counter()
    training.run(ended)
    return ended.at - start


def bare_loop(training: StudentTraining, split: EncodedSplit, teacher_logits: Tensor) -> float:
    """Train the same model on the same batches in a loop that does nothing else.

    Args:
        training: model, sequence and settings are taken from it, before it has run.
        split: the examples.
        teacher_logits: (K, N, C), in RAM.

    Returns:
        The seconds that it took.
    """
    config, model, view = training.config, training.model, split.views[STUDENT_VIEW]
    optimizer_class: Any = getattr(torch.optim, config.optimizer)
    optimizer = optimizer_class(model.parameters(), lr=config.learning_rate, fused=True)
    warmup = round(config.warmup_ratio * training.num_steps)
    scheduler = get_scheduler(config.lr_scheduler, optimizer, warmup, training.num_steps)
    targets = teacher_logits.mean(dim=0)
    labels = torch.from_numpy(np.array(split.labels))
    model.train()
    start = time.perf_counter()
    for step in range(training.num_steps):
        _, rows = training.sequence.batch(step)
        logits = model(**collate(view, rows, Padding(0))).logits
        target = torch.softmax(targets[rows] / TEMPERATURE, dim=-1)
        soft = -(target * torch.log_softmax(logits / TEMPERATURE, dim=-1)).sum(dim=-1).mean()
        loss = soft + 0.5 * torch.nn.functional.cross_entropy(logits, labels[rows])
        loss.backward()
        if config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def on_one_core() -> None:
    """Have this process, whatever its threads, use one core, as one thread of a loop does."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
