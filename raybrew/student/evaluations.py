"""Evaluations of the student: when, a function of the step alone, and how, on every rank."""

from collections.abc import Callable

import numpy as np

from raybrew.config import TrainingConfig
from raybrew.data.sampler import rank_rows
from raybrew.data.split import EncodedSplit
from raybrew.evaluation import ModelOnDevice, predict
from raybrew.kinds import kind_of
from raybrew.labels.payload import Payload
from raybrew.student.batches import StudentTask
from raybrew.student.world import World

__all__ = ["evaluate_task", "evaluation_due", "next_evaluation"]


def evaluation_due(config: TrainingConfig, step: int, steps_per_epoch: int, num_steps: int) -> bool:
    """Return whether the student is evaluated after `step` steps; it always is at the end."""
    if step == num_steps:
        return True
    if config.evaluations_per_epoch is not None:
        times = config.evaluations_per_epoch
        return step * times // steps_per_epoch > (step - 1) * times // steps_per_epoch
    if config.evaluate_every is not None:
        return step % config.evaluate_every == 0
    return step % (steps_per_epoch * (config.evaluate_every_epochs or 1)) == 0


def next_evaluation(config: TrainingConfig, step: int, steps_per_epoch: int, num_steps: int) -> int:
    """Return after how many steps the student is evaluated next; `step` have been taken."""
    later = range(step + 1, num_steps + 1)
    return next(s for s in later if evaluation_due(config, s, steps_per_epoch, num_steps))


def evaluate_task(
    task: StudentTask,
    split: EncodedSplit,
    model: ModelOnDevice,
    world: World,
    *,
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> dict[str, float]:
    """Return the metrics of a task's rows, of which every rank predicts its part.

    Args:
        task: what the model answers.
        split: its rows for evaluation.
        model: the student, with what it reads.
        world: this rank; the call is a collective.
        batch_size: rows of a batch.
        on_progress: told the examples that rank 0 has done, and all that it does.
    """
    kind = kind_of(task.kind)
    rows = rank_rows(np.arange(len(split)), world.rank, world.size)
    predicted = predict(
        model,
        kind,
        split,
        rows,
        batch_size=batch_size,
        on_progress=on_progress if world.rank == 0 else None,
    )
    parts = world.gather((rows, predicted))
    order = np.concatenate([part for part, _ in parts])
    return kind.metrics(Payload.concat([part for _, part in parts]), split, order, task.label_names)
