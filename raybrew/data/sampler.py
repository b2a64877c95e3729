"""The sequence of global batches: a function of (seed, step), whoever asks and how many they are.

    step ──► task (drawn by the tasks' probabilities) ──► position in the task's own epochs ──► rows

Epoch e of task d is an order drawn from (seed, d, e); its last batch may be smaller. So a run
that was stopped goes on where it was, and the number of workers changes nothing.
"""

from collections.abc import Sequence

import numpy as np

from raybrew.data.order import epoch_order
from raybrew.errors import ConfigError

__all__ = ["BatchSequence", "micro_batches", "proportional", "rank_rows"]

_BLOCK = 1024


class BatchSequence:
    """Global batches of one task or of several.

    Args:
        sizes: examples of each task, above 0.
        batch_size: examples of a global batch; one number, or one for each task.
        seed: of order and of the draw of tasks.
        probabilities: of each task; in proportion to the sizes if left out.
        rounds: of each task, parts of `size` rows that its epochs read in turn; one if left out.
        lengths: of each task's examples, to put those of similar length into one batch; None for
            batches as they are drawn.

    Raises:
        ConfigError: sizes, batch sizes or probabilities that can't be.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int | Sequence[int],
        seed: int,
        probabilities: Sequence[float] | None = None,
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
        self._probabilities = _normalised(probabilities or proportional(sizes), len(sizes))
        # How often each task was drawn before the start of each block of steps.
        self._drawn_before: list[np.ndarray] = [np.zeros(len(sizes), np.int64)]
        self._lengths = lengths
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every example of every task comes up once, on average for several."""
        return sum(self._steps(task) for task in range(len(self._sizes)))

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """Return the task of a step and its rows, int64 (b,)."""
        task, position = self._place(step)
        epoch, number = divmod(position, self._steps(task))
        size = self._batch_sizes[task]
        return task, self._order(task, epoch)[number * size : (number + 1) * size]

    def _steps(self, task: int) -> int:
        return -(-self._sizes[task] // self._batch_sizes[task])

    def _place(self, step: int) -> tuple[int, int]:
        if len(self._sizes) == 1:
            return 0, step
        block, offset = divmod(step, _BLOCK)
        while len(self._drawn_before) <= block:
            drawn = self._draw(len(self._drawn_before) - 1)
            counts = np.bincount(drawn, minlength=len(self._sizes))
            self._drawn_before.append(self._drawn_before[-1] + counts)
        tasks = self._draw(block)
        task = int(tasks[offset])
        earlier = int((tasks[:offset] == task).sum())
        return task, int(self._drawn_before[block][task]) + earlier

    def _draw(self, block: int) -> np.ndarray:
        generator = np.random.Generator(np.random.PCG64([self._seed, len(self._sizes), block]))
        return generator.choice(len(self._sizes), _BLOCK, p=self._probabilities)

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


def proportional(sizes: Sequence[int], tau: float = 1.0) -> list[float]:
    """Return p ∝ size^τ of each task.

    Reference:
        Stickland and Murray 2019, arXiv:1902.02671.
    """
    return _normalised([float(size) ** tau for size in sizes], len(sizes)).tolist()


def rank_rows(rows: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Return the part of a global batch that a rank takes; it may be empty."""
    return rows[rank::world_size]


def micro_batches(rows: np.ndarray, count: int) -> list[np.ndarray]:
    """Split rows into `count` parts of nearly the same size, in order; parts may be empty."""
    return np.array_split(rows, count)


def _normalised(shares: Sequence[float], count: int) -> np.ndarray:
    values = np.asarray(shares, np.float64)
    if (
        len(values) != count
        or not np.isfinite(values).all()
        or values.min() < 0
        or not values.sum()
    ):
        raise ConfigError(
            f"probabilities of {count} tasks: expected as many numbers ≥ 0 with a sum above 0, got "
            f"{list(shares)}"
        )
    return values / values.sum()
