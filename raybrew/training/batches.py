"""Batches of a step: their rows, collated, their labels, and what the objective counts in them.

    step ──► rows of the sequence ──► labels ──► collate ──► page-locked memory ──► device
                    └──► counts of the global batch ──► denominators

All of it is a function of the step and of the labels, so it may be made at any time before.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from raybrew.config import TrainingConfig
from raybrew.data.batch_sequence import BatchSequence, micro_batches, rank_rows
from raybrew.data.encoding import spans
from raybrew.data.payload import Payload
from raybrew.data.split import IGNORED, Padding, collate, collate_labels, collate_tokens
from raybrew.labels.logits import tensors_of
from raybrew.labels.source import LabelSource
from raybrew.objective import Objective, SoftLabels
from raybrew.objective.rows import ExampleInputs
from raybrew.training.job import ResolvedTask
from raybrew.training.prefetch import PinnedBuffers, Prefetcher
from raybrew.training.step import MicroBatch, StepBatch
from raybrew.training.world import World

Payloads = Mapping[str, Mapping[str, Payload]]
"""By teacher, by name of the signal."""


def batch_counts(
    task: ResolvedTask, rows: np.ndarray, world_size: int, passes: int
) -> tuple[np.ndarray, list[np.ndarray], int]:
    """Return what every rank knows of a global batch, the arguments of `Objective.denominators`.

    Args:
        task: whose batch it is.
        rows: of the batch, int64 (B,).
        world_size: ranks.
        passes: forward passes of a rank.
    """
    lengths = [
        task.train.student.lengths_of(part)
        for rank in range(world_size)
        for part in micro_batches(rank_rows(rows, rank, world_size), passes)
    ]
    return task.train.labels_of(rows), lengths, _unreached(task, rows)


def micro_batches_of(
    task: ResolvedTask,
    rows: np.ndarray,
    payloads: Payloads,
    *,
    world: World,
    passes: int,
    padding: Padding,
) -> Iterator[MicroBatch]:
    """Yield what each forward pass of this rank reads, in host memory.

    Args:
        task: whose batch it is.
        rows: of the global batch, int64 (B,).
        payloads: of the teachers, a row for each of this rank's rows.
        world: this rank.
        passes: forward passes that the rank's rows are split into.
        padding: fills shorter examples up.
    """
    mine = rank_rows(rows, world.rank, world.size)
    train, view = task.train, task.train.student
    # Where a loss depends on the padding, every pass of every rank is padded alike.
    pad_to = int(view.lengths_of(rows).max(initial=0)) if task.padding_counts else None
    start = 0
    for part in micro_batches(mine, passes):
        inputs = collate(view, part, padding, pad_to)
        stop, length = start + len(part), inputs["input_ids"].shape[1]
        yield MicroBatch(
            inputs=inputs,
            labels=collate_labels(train, part, length),
            soft=_soft_labels(task, payloads, start, stop) if len(part) else {},
            examples=ExampleInputs(
                row_keys=torch.from_numpy(view.keys[part, 0].astype(np.int64)),
                route=None if train.routes is None else torch.from_numpy(train.routes[part]),
                alignment={
                    teacher: collate_tokens(train, aligned, part, length, -1)
                    for teacher, aligned in task.alignments.items()
                },
            ),
        )
        start = stop


def _unreached(task: ResolvedTask, rows: np.ndarray) -> int:
    """Count the labelled tokens in a batch for which no teacher has logits."""
    alignments = task.alignments
    if not task.train.per_token or len(alignments) < len(task.signals):
        return 0
    source, _ = spans(task.train.student.offsets, rows)
    reached = np.logical_or.reduce([aligned[source] >= 0 for aligned in alignments.values()])
    return int(((task.train.labels[source] != IGNORED) & ~reached).sum())


def _soft_labels(task: ResolvedTask, payloads: Payloads, start: int, stop: int) -> SoftLabels:
    return {
        teacher: {
            signal.name: tensors_of(by_signal[signal.name].slice(start, stop), signal)
            for signal in task.signals[teacher]
        }
        for teacher, by_signal in payloads.items()
    }


ReadyStep = tuple[list[StepBatch], "torch.cuda.Event | None"]
"""This rank's parts of a step's global batches, and what `prefetch.wait_for` waits for."""


@dataclass
class BatchBuilder:
    """Builds the batches of a rank's steps, in order.

    Args:
        tasks: in the order of the sequence.
        objectives: one a task.
        paddings: one a task, what fills shorter examples up.
        weights: of the tasks' losses.
        sequence: the global batches.
        labels: soft labels; None without teachers.
        config: batch size, passes, how many steps to prefetch.
        world: this rank.
    """

    tasks: Sequence[ResolvedTask]
    objectives: Sequence[Objective]
    paddings: Sequence[Padding]
    weights: Sequence[float]
    sequence: BatchSequence
    labels: LabelSource | None
    config: TrainingConfig
    world: World
    _buffers: PinnedBuffers = field(init=False, repr=False)

    def __post_init__(self):
        # Under way at once: the step that runs, those that lie ready, the one that is being built.
        self._buffers = PinnedBuffers(self.config.prefetch + 2, self.world.device)

    def prefetch(self, steps: range) -> Prefetcher[ReadyStep]:
        """Build these steps while the ones before them run."""
        return Prefetcher(self.build, steps, self.config.prefetch)

    def build(self, step: int) -> ReadyStep:
        """Build the batches of a step; steps must come in rising order."""
        batches = [self._batch(number) for number in self.sequence.numbers(step)]
        ready = self._buffers.bring(step, batches)
        if self.labels is not None and (step + 1) % self.sequence.steps_per_epoch == 0:
            self.labels.settle()
        return ready

    def _batch(self, number: int) -> StepBatch:
        index, rows = self.sequence.batch(number)
        task, passes = self.tasks[index], self.config.gradient_accumulation_steps
        micro_batches = micro_batches_of(
            task,
            rows,
            {} if self.labels is None else self.labels.get(number),
            world=self.world,
            passes=passes,
            padding=self.paddings[index],
        )
        return StepBatch(
            task=index,
            micro_batches=list(micro_batches),
            denominators=self.objectives[index].denominators(
                *batch_counts(task, rows, self.world.size, passes)
            ),
            weight=self.weights[index],
        )
