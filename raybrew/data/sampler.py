"""The sequence of global batches: a function of (seed, step), whoever asks and how many they are.

    step ──► its batches ──► task of each (mixing.py) ──► position in the task's own epochs ──► rows

A step takes one batch, or several, each of a task of its own. Epoch e of task d is an order drawn
from (seed, d, e); its last batch may be smaller. So a run that was stopped goes on where it was,
and the number of workers changes nothing.
"""

from collections.abc import Sequence

import numpy as np

from raybrew.data.mixing import RandomDraws, TurnDraws, proportional
from raybrew.data.order import epoch_order
from raybrew.errors import ConfigError

__all__ = ["BatchSequence", "batches_per_epoch", "micro_batches", "rank_rows"]


class BatchSequence:
    """Global batches of one task or of several.

    Args:
        sizes: examples of each task, above 0.
        batch_size: examples of a global batch; one number, or one for each task.
        seed: of order and of the draw of tasks.
        draws: which task a batch is of; in proportion to the sizes if left out.
        batches_per_step: batches, each of a task of its own, that one optimizer step takes.
        rounds: of each task, parts of `size` rows that its epochs read in turn; one if left out.
        lengths: of each task's examples, to put those of similar length into one batch; None for
            batches as they are drawn.

    Raises:
        ConfigError: sizes or batch sizes that can't be.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int | Sequence[int],
        seed: int,
        draws: TurnDraws | RandomDraws | None = None,
        batches_per_step: int = 1,
        rounds: Sequence[int] | None = None,
        lengths: Sequence[np.ndarray] | None = None,
    ):
        self._sizes = tuple(sizes)
        given = [batch_size] * len(sizes) if isinstance(batch_size, int) else list(batch_size)
        if not sizes or min(sizes) < 1 or len(given) != len(sizes) or min(given) < 1:
            raise ConfigError(
                f"batch sequence: expected sizes and batch sizes above 0, one for each task, got "
                f"{tuple(sizes)} and {tuple(given)}"
            )
        self._batch_sizes = tuple(given)
        self._rounds = tuple(rounds or [1] * len(sizes))
        self._seed = seed
        self._per_epoch = batches_per_epoch(sizes, self._batch_sizes)
        if draws is None:
            draws = _proportional_draws(sizes, seed, self._per_epoch)
        self._draws = draws
        self.batches_per_step = batches_per_step
        self._lengths = lengths
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every example of every task comes up once, on average for several."""
        return -(-self._per_epoch // self.batches_per_step)

    def numbers(self, step: int) -> range:
        """Return the numbers of the batches that a step takes."""
        return range(step * self.batches_per_step, (step + 1) * self.batches_per_step)

    def batch(self, number: int) -> tuple[int, np.ndarray]:
        """Return the task of a batch and its rows, int64 (b,)."""
        task, position = self._draws.place(number)
        epoch, within = divmod(position, self._batches(task))
        size = self._batch_sizes[task]
        return task, self._order(task, epoch)[within * size : (within + 1) * size]

    def _batches(self, task: int) -> int:
        return -(-self._sizes[task] // self._batch_sizes[task])

    def _order(self, task: int, epoch: int) -> np.ndarray:
        if (task, epoch) not in self._orders:
            # Labels are asked for ahead, so that two epochs are in use where they meet.
            for earlier in [key for key in self._orders if key[0] == task and key[1] < epoch - 1]:
                del self._orders[earlier]
            size = self._sizes[task]
            first = epoch % self._rounds[task] * size
            lengths = None if self._lengths is None else self._lengths[task]
            self._orders[task, epoch] = first + epoch_order(
                self._seed,
                task,
                epoch,
                size,
                batch_size=self._batch_sizes[task],
                lengths=None if lengths is None else lengths[first : first + size],
            )
        return self._orders[task, epoch]


def batches_per_epoch(sizes: Sequence[int], batch_sizes: Sequence[int]) -> int:
    """Return how many batches all tasks together have."""
    return sum(-(-size // batch) for size, batch in zip(sizes, batch_sizes, strict=True))


def _proportional_draws(sizes: Sequence[int], seed: int, per_epoch: int) -> TurnDraws | RandomDraws:
    if len(sizes) == 1:
        return TurnDraws(1)
    shares = proportional(sizes)
    return RandomDraws(len(sizes), seed, lambda epoch: shares, per_epoch)


def rank_rows(rows: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Return the part of a global batch that a rank takes; it may be empty."""
    return rows[rank::world_size]


def micro_batches(rows: np.ndarray, count: int) -> list[np.ndarray]:
    """Split rows into `count` parts of nearly the same size, in order; parts may be empty."""
    return np.array_split(rows, count)
