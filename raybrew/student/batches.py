"""What a rank's forward passes read: its rows, collated, with what the teachers said of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from raybrew.data.collate import collate, collate_labels, collate_tokens
from raybrew.data.padding import Padding
from raybrew.data.sampler import micro_batches, rank_rows
from raybrew.data.spans import spans
from raybrew.data.split import IGNORED, STUDENT_VIEW, EncodedSplit
from raybrew.labels.payload import Payload, Signal
from raybrew.labels.tensors import tensors_of
from raybrew.matching.plan import TaskMatch
from raybrew.models.adaptors import ADAPTORS, Adaptor
from raybrew.objective import BatchFacts, SoftLabels
from raybrew.student.step import MicroBatch
from raybrew.student.world import World

__all__ = ["STUDENT_VIEW", "StudentTask", "batch_facts", "micro_batches_of"]

Answers = Mapping[str, Mapping[str, Payload]]


@dataclass(frozen=True)
class StudentTask:
    """A task as the student meets it.

    Args:
        name: the job's name of it.
        kind: what a prediction is.
        train: what to learn from.
        eval: what to evaluate on.
        signals: by teacher, what is asked of it.
        adaptor: what the student's outputs mean; that of the kind if None.
        label_names: classes, in the order of the logits.
        views: by teacher, the encoded view that it reads; the student's for those left out.
        matches: what is compared of its models' insides.
    """

    name: str
    kind: str
    train: EncodedSplit
    eval: EncodedSplit | None
    signals: Mapping[str, Sequence[Signal]]
    adaptor: Adaptor | None = None
    label_names: tuple[str, ...] = ()
    views: Mapping[str, str] = field(default_factory=dict)
    matches: Sequence[TaskMatch] = ()

    @property
    def padding_counts(self) -> bool:
        """Whether a match's value depends on how far a batch is padded."""
        # Not of the signals: matches of one statistic share one, with the first one's loss.
        return any(match.padding_counts for match in self.matches)

    @property
    def alignments(self) -> dict[str, np.ndarray]:
        """By teacher that reads tokens of its own, which of them answers for each of ours."""
        known = self.train.alignments
        return {name: known[view] for name, view in self.views.items() if view in known}

    @property
    def reads(self) -> Adaptor:
        """The adaptor in use."""
        return self.adaptor or ADAPTORS[self.kind]


def batch_facts(task: StudentTask, rows: np.ndarray, world_size: int, passes: int) -> BatchFacts:
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
    return BatchFacts(
        labels=task.train.labels_of(rows),
        lengths=task.train.student.lengths_of(rows),
        parts=tuple(parts),
        unreached=_unreached(task, rows),
    )


def micro_batches_of(
    task: StudentTask,
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


def _unreached(task: StudentTask, rows: np.ndarray) -> int:
    """Count the tokens of the task in a batch for which no teacher has an answer."""
    alignments = task.alignments
    if not task.train.per_token or len(alignments) < len(task.signals):
        return 0
    source, _ = spans(task.train.student.offsets, rows)
    reached = np.logical_or.reduce([aligned[source] >= 0 for aligned in alignments.values()])
    return int(((task.train.labels[source] != IGNORED) & ~reached).sum())


def _soft_labels(task: StudentTask, answers: Answers, start: int, stop: int) -> SoftLabels:
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
