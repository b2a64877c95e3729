"""The order in which an epoch meets its examples: drawn, or drawn and grouped by length.

permutation ──► pools of neighbouring rows ──► each sorted by length ──► cut into batches ──►
the batches in an order that is drawn ──► what doesn't fill a batch comes last
"""

import numpy as np

__all__ = ["epoch_order"]

_POOL_BATCHES = 32
"""Batches of one pool. More make batches evener in length, and neighbours more alike."""


def epoch_order(
    seed: int, task: int, epoch: int, size: int, *, batch_size: int, lengths: np.ndarray | None
) -> np.ndarray:
    """Return the rows of an epoch in order, int64 (size,): a function of the arguments alone.

    Args:
        seed: of the run.
        task: whose epoch it is.
        epoch: from 0.
        size: examples of the task.
        batch_size: rows that are neighbours in one batch.
        lengths: tokens of each example, int64 (size,), to group them by; None to leave them as
            they are drawn.
    """
    generator = np.random.Generator(np.random.PCG64([seed, 0, task, epoch]))
    drawn = generator.permutation(size)
    if lengths is None:
        return drawn
    filled = size // batch_size * batch_size
    pools = np.split(drawn[:filled], np.arange(0, filled, _POOL_BATCHES * batch_size)[1:])
    rows = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    batches = generator.permutation(rows.reshape(-1, batch_size))
    return np.concatenate([batches.ravel(), drawn[filled:]])
