"""What a rank's forward passes read: its rows, collated, with what the teachers said of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raybrew.data.collate import collate
from raybrew.data.encoding import EncodedSplit
from raybrew.data.sampler import micro_batches, rank_rows
from raybrew.labels.payload import Payload, Signal
from raybrew.labels.tensors import tensors_of
from raybrew.models.adaptors import ADAPTORS, Adaptor
from raybrew.objective import BatchFacts, SoftLabels
from raybrew.student.step import MicroBatch
from raybrew.student.world import World

__all__ = ["STUDENT_VIEW", "StudentTask", "batch_facts", "micro_batches_of"]

STUDENT_VIEW = "student"
"""Name of the encoded view that the student reads."""

PADDING_COUNTS = ("mmd", "nst", "attention_ce", "attention_ce_mean")
"""Match losses that keep TextBrewer's dependence on the padded length."""

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
    """

    name: str
    kind: str
    train: EncodedSplit
    eval: EncodedSplit | None
    signals: Mapping[str, Sequence[Signal]]
    adaptor: Adaptor | None = None

    @property
    def padding_counts(self) -> bool:
        """Whether a match's value depends on how far a batch is padded."""
        recipes = [signal.recipe for asked in self.signals.values() for signal in asked]
        return any(getattr(recipe, "loss", None) in PADDING_COUNTS for recipe in recipes)

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
    lengths = task.train.views[STUDENT_VIEW].lengths
    return BatchFacts(task.train.labels[rows], lengths[rows], tuple(parts))


def micro_batches_of(
    task: StudentTask,
    rows: np.ndarray,
    answers: Answers,
    *,
    world: World,
    passes: int,
    pad_token_id: int,
) -> Iterator[MicroBatch]:
    """Yield what each forward pass of this rank reads, in host memory.

    Args:
        task: whose batch it is.
        rows: of the global batch, int64 (B,).
        answers: by teacher, by name of the signal: a row for each of this rank's rows.
        world: this rank.
        passes: forward passes that the rank's rows are split into.
        pad_token_id: fills shorter examples up.
    """
    mine = rank_rows(rows, world.rank, world.size)
    view = task.train.views[STUDENT_VIEW]
    # Where a loss depends on the padding, every pass of every rank is padded alike.
    pad_to = int(view.lengths[rows].max(initial=0)) if task.padding_counts else None
    start = 0
    for part in micro_batches(mine, passes):
        stop = start + len(part)
        routes = task.train.routes
        yield MicroBatch(
            inputs=collate(view, part, pad_token_id, pad_to),
            labels=torch.from_numpy(task.train.labels[part]),
            soft=_soft_labels(task, answers, start, stop) if len(part) else {},
            row_keys=torch.from_numpy(view.keys[part, 0].astype(np.int64)),
            route=None if routes is None else torch.from_numpy(routes[part]),
        )
        start = stop


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
