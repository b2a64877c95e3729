"""Batches of a step: which examples, their labels, and what the objective counts in them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from raybrew.config import TrainingConfig
from raybrew.data.batch_sequence import BatchSequence, micro_batches, rank_rows
from raybrew.data.encoding import spans
from raybrew.data.payload import Payload
from raybrew.data.split import (
    IGNORED,
    STUDENT_VIEW,
    Padding,
    collate,
    collate_labels,
    collate_tokens,
)
from raybrew.labels.logits import tensors_of
from raybrew.labels.source import LabelSource
from raybrew.objective import BatchCounts, Objective, SoftLabels, TrainProgress
from raybrew.training.job import ResolvedTask
from raybrew.training.prefetch import PinnedBuffers, Prefetcher, wait_for
from raybrew.training.step import MicroBatch, StepBatch
from raybrew.training.world import World

# What a rank's forward passes read: its rows, collated, with what the teachers said of them.

Answers = Mapping[str, Mapping[str, Payload]]


def batch_facts(task: ResolvedTask, rows: np.ndarray, world_size: int, passes: int) -> BatchCounts:
    """Return what every rank knows of a global batch.

    Args:
        task: whose batch it is.
        rows: of the batch, int64 (B,).
        world_size: ranks.
        passes: forward passes of a rank.
    """
    positions = np.arange(len(rows))
    parts = [
        part
        for rank in range(world_size)
        for part in micro_batches(rank_rows(positions, rank, world_size), passes)
    ]
    return BatchCounts(
        labels=task.train.labels_of(rows),
        lengths=task.train.student.lengths_of(rows),
        parts=tuple(parts),
        unreached=_unreached(task, rows),
    )


def micro_batches_of(
    task: ResolvedTask,
    rows: np.ndarray,
    answers: Answers,
    *,
    world: World,
    passes: int,
    padding: Padding,
) -> Iterator[MicroBatch]:
    """Yield what each forward pass of this rank reads, in host memory.

    Args:
        task: whose batch it is.
        rows: of the global batch, int64 (B,).
        answers: by teacher, by name of the signal: a row for each of this rank's rows.
        world: this rank.
        passes: forward passes that the rank's rows are split into.
        padding: fills shorter examples up.
    """
    mine = rank_rows(rows, world.rank, world.size)
    view = task.train.views[STUDENT_VIEW]
    # Where a loss depends on the padding, every pass of every rank is padded alike.
    pad_to = int(view.lengths_of(rows).max(initial=0)) if task.padding_counts else None
    start = 0
    for part in micro_batches(mine, passes):
        inputs = collate(view, part, padding, pad_to)
        stop = start + len(part)
        length = inputs["input_ids"].shape[1]
        routes = task.train.routes
        yield MicroBatch(
            inputs=inputs,
            labels=collate_labels(task.train, part, length),
            soft=_soft_labels(task, answers, start, stop) if len(part) else {},
            row_keys=torch.from_numpy(view.keys[part, 0].astype(np.int64)),
            route=None if routes is None else torch.from_numpy(routes[part]),
            alignment={
                teacher: collate_tokens(task.train, aligned, part, length, -1)
                for teacher, aligned in task.alignments.items()
            },
        )
        start = stop


def _unreached(task: ResolvedTask, rows: np.ndarray) -> int:
    """Count the tokens of the task in a batch for which no teacher has an answer."""
    alignments = task.alignments
    if not task.train.per_token or len(alignments) < len(task.signals):
        return 0
    source, _ = spans(task.train.student.offsets, rows)
    reached = np.logical_or.reduce([aligned[source] >= 0 for aligned in alignments.values()])
    return int(((task.train.labels[source] != IGNORED) & ~reached).sum())


def _soft_labels(task: ResolvedTask, answers: Answers, start: int, stop: int) -> SoftLabels:
    signals = {
        teacher: {signal.name: signal for signal in asked}
        for teacher, asked in task.signals.items()
    }
    return {
        teacher: {
            name: tensors_of(payload.slice(start, stop), signals[teacher][name])
            for name, payload in by_signal.items()
        }
        for teacher, by_signal in answers.items()
    }


# What a step of a rank needs, made ready before the step comes.
#
#     step ──► rows of the sequence ──► labels ──► collate ──► a block of memory ──► device
#                     └──► counts of the global batch ──► denominators
#
# All of it is a function of the step and of the labels, so it may be made at any time before.


@dataclass(frozen=True)
class ReadyStep:
    """What a step needs.

    Args:
        batches: this rank's parts of the step's global batches, on the device.
        position: where in the run the step is.
        copied: on a GPU, the event after which the tensors are there.
    """

    batches: list[StepBatch]
    position: TrainProgress
    copied: "torch.cuda.Event | None" = None

    def arrive(self) -> list[StepBatch]:
        """Return the batches; the current stream waits for them."""
        wait_for(self.copied, [micro for each in self.batches for micro in each.micro_batches])
        return self.batches


@dataclass
class BatchBuilder:
    """Makes the steps of a rank ready, in order.

    Args:
        tasks: in the order of the sequence.
        objectives: one a task.
        sequence: the global batches.
        labels: soft labels; None without teachers.
        config: batch size, passes, how far ahead.
        world: this rank.
        num_steps: length of the run.
        paddings: of each task, what fills shorter examples up.
        weights: of the tasks' losses; 1 if empty.
    """

    tasks: Sequence[ResolvedTask]
    objectives: Sequence[Objective]
    sequence: BatchSequence
    labels: LabelSource | None
    config: TrainingConfig
    world: World
    num_steps: int
    paddings: Sequence[Padding]
    weights: Sequence[float] = ()
    _blocks: PinnedBuffers = field(init=False)

    def __post_init__(self):
        # On their way at once: one that trains, those that lie ready, one that is being made.
        self._blocks = PinnedBuffers(self.config.prefetch + 2, self.world.device)

    def ahead(self, steps: range) -> Prefetcher[ReadyStep]:
        """Make these steps ready beside the thread that takes them."""
        return Prefetcher(self.make, steps, self.config.prefetch)

    def make(self, step: int) -> ReadyStep:
        """Make a step ready; steps must come in rising order."""
        batches = [self._batch(number) for number in self.sequence.numbers(step)]
        flat = [micro for each in batches for micro in each.micro_batches]
        moved, copied = self._blocks.bring(step, flat)
        micros = iter(moved)
        steps_per_epoch = self.sequence.steps_per_epoch
        if self.labels is not None and (step + 1) % steps_per_epoch == 0:
            self.labels.settle()
        return ReadyStep(
            batches=[
                replace(each, micro_batches=[next(micros) for _ in each.micro_batches])
                for each in batches
            ],
            position=TrainProgress(step / self.num_steps, step // steps_per_epoch, step),
            copied=copied,
        )

    def _batch(self, number: int) -> StepBatch:
        task, rows = self.sequence.batch(number)
        passes = self.config.gradient_accumulation_steps
        micro_batches = micro_batches_of(
            self.tasks[task],
            rows,
            {} if self.labels is None else self.labels.get(number),
            world=self.world,
            passes=passes,
            padding=self.paddings[task],
        )
        facts = batch_facts(self.tasks[task], rows, self.world.size, passes)
        return StepBatch(
            task=task,
            micro_batches=list(micro_batches),
            denominators=self.objectives[task].denominators(facts),
            weight=self.weights[task] if self.weights else 1.0,
        )
