"""The sequence of global batches: a function of (seed, step) alone.

    step ──► its batches ──► task of each ──► position in the task's own epochs ──► rows

A step takes one batch, or several, each of a single task. Which task a batch is of depends on
(seed, number of the batch) alone: one uniform number is drawn for each batch whatever the
probabilities are, so that they may change from epoch to epoch, and any batch can be looked up
without those before it. Epoch e of task d is an order drawn from (seed, d, e); its last batch may
be smaller. So a resumed run continues where it stopped, and the number of workers changes nothing.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from raybrew.config import MixingConfig
from raybrew.errors import ConfigError

_BLOCK = 1024
"""Batches whose tasks are drawn at once."""
_POOL_BATCHES = 32
"""Batches of one pool. More make batches evener in length, and neighbours more alike."""


class RoundRobinSchedule:
    """Each task in turn."""

    def __init__(self, num_tasks: int):
        self._num_tasks = num_tasks

    def place(self, number: int) -> tuple[int, int]:
        """Return the task of a batch, and how many of its batches came before."""
        position, task = divmod(number, self._num_tasks)
        return task, position


class RandomSchedule:
    """Tasks drawn by their probabilities.

    Args:
        num_tasks: how many.
        seed: of the draws.
        probabilities: epoch -> (num_tasks,), with a sum of 1.
        batches_per_epoch: after how many batches the next epoch's probabilities hold.
    """

    def __init__(
        self,
        num_tasks: int,
        seed: int,
        probabilities: Callable[[int], np.ndarray],
        batches_per_epoch: int,
    ):
        self._num_tasks, self._seed = num_tasks, seed
        self._probabilities, self._batches_per_epoch = probabilities, batches_per_epoch
        # How often each task was drawn before the start of each block of batches.
        self._drawn_before: list[np.ndarray] = [np.zeros(num_tasks, np.int64)]
        self._last: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def place(self, number: int) -> tuple[int, int]:
        """Return the task of a batch, and how many of its batches came before."""
        block, offset = divmod(number, _BLOCK)
        while len(self._drawn_before) <= block:
            counts = np.bincount(self._draw(len(self._drawn_before) - 1), minlength=self._num_tasks)
            self._drawn_before.append(self._drawn_before[-1] + counts)
        tasks = self._draw(block)
        task = int(tasks[offset])
        earlier = int((tasks[:offset] == task).sum())
        return task, int(self._drawn_before[block][task]) + earlier

    def _draw(self, block: int) -> np.ndarray:
        """Return the tasks of a block of batches, int64 (_BLOCK,)."""
        if self._last[0] == block:
            return self._last[1]
        generator = np.random.Generator(np.random.PCG64([self._seed, self._num_tasks, block]))
        uniform = generator.random(_BLOCK)
        epochs = (block * _BLOCK + np.arange(_BLOCK)) // self._batches_per_epoch
        tasks = np.empty(_BLOCK, np.int64)
        for epoch in np.unique(epochs):
            upper = self._probabilities(int(epoch)).cumsum()
            mine = epochs == epoch
            tasks[mine] = (upper / upper[-1]).searchsorted(uniform[mine], side="right")
        self._last = block, tasks
        return tasks


def task_schedule(
    mixing: MixingConfig,
    names: Sequence[str],
    sizes: Sequence[int],
    seed: int,
    *,
    batches_per_epoch: int,
    num_epochs: float,
) -> RoundRobinSchedule | RandomSchedule:
    """Return how the batches of several tasks follow each other.

    Args:
        mixing: the job's section.
        names: of the tasks.
        sizes: examples of each.
        seed: of the draws.
        batches_per_epoch: of all tasks together.
        num_epochs: length of the run, over which τ is annealed.

    Raises:
        ConfigError: invalid probabilities.
    """
    constant = task_shares(mixing, names, sizes)
    if mixing.sampling == "every" or len(names) == 1:
        return RoundRobinSchedule(len(names))

    def probabilities(epoch: int) -> np.ndarray:
        if mixing.sampling != "annealed":
            return constant
        done = min(1.0, epoch / max(num_epochs - 1, 1e-9))
        return proportional(sizes, mixing.tau + (mixing.tau_end - mixing.tau) * done)

    return RandomSchedule(len(names), seed, probabilities, batches_per_epoch)


def check_mixing(mixing: MixingConfig, names: Sequence[str]) -> None:
    """Refuse what doesn't fit the tasks, before their sizes are known.

    Raises:
        ConfigError: invalid probabilities.
    """
    task_shares(mixing, names, [1] * len(names))


def task_shares(mixing: MixingConfig, names: Sequence[str], sizes: Sequence[int]) -> np.ndarray:
    """Return the probability of each task, as the job's section has it before any annealing."""
    if mixing.sampling == "t5":
        return t5_shares(sizes, mixing.limit, mixing.temperature)
    if mixing.sampling != "fixed":
        return proportional(sizes, mixing.tau)
    given = mixing.probabilities or {}
    if given.keys() != set(names):
        raise ConfigError(
            f"mixing.probabilities: expected one for each task ({', '.join(names)}), got "
            f"{', '.join(given) or 'none'}"
        )
    return _normalised([given[name] for name in names])


def proportional(sizes: Sequence[int], tau: float = 1.0) -> np.ndarray:
    """Return p ∝ size^τ of each task.

    Reference:
        Stickland and Murray 2019, arXiv:1902.02671.
    """
    return _normalised([float(size) ** tau for size in sizes])


def t5_shares(sizes: Sequence[int], limit: int, temperature: float) -> np.ndarray:
    """Return p ∝ min(size, K)^(1/T) of each task.

    Reference:
        Raffel et al. 2020, arXiv:1910.10683, section 3.5.2.
    """
    return _normalised([float(min(size, limit)) ** (1 / temperature) for size in sizes])


def _normalised(shares: Sequence[float]) -> np.ndarray:
    values = np.asarray(shares, np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or not values.sum():
        raise ConfigError(
            f"mixing: expected {len(shares)} shares of tasks ≥ 0 with a sum above 0, got "
            f"{list(shares)}"
        )
    return values / values.sum()


def epoch_order(
    seed: int, task: int, epoch: int, size: int, *, batch_size: int, lengths: np.ndarray | None
) -> np.ndarray:
    """Return the rows of an epoch in order, int64 (size,): a function of the arguments alone.

    permutation ──► pools of neighbouring rows ──► each sorted by length ──► cut into batches ──►
    the batches in a random order ──► what doesn't fill a batch comes last

    Args:
        seed: of the run.
        task: whose epoch it is.
        epoch: from 0.
        size: examples of the task.
        batch_size: rows that are neighbours in one batch.
        lengths: tokens of each example, int64 (size,), to group them by; None for the permutation
            as it is.
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


class TaskExamples(NamedTuple):
    """What the sequence has to know of a task's training split.

    Args:
        size: examples of an epoch, above 0.
        batch_size: examples of a global batch, above 0.
        rounds: parts of `size` rows that the epochs read in turn.
        lengths: tokens of each of the rounds · size examples, int64, to put those of similar length
            into one batch; None for batches as they are drawn.
    """

    size: int
    batch_size: int
    rounds: int = 1
    lengths: np.ndarray | None = None

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        return -(-self.size // self.batch_size)


class BatchSequence:
    """Global batches of one task or of several.

    Args:
        tasks: their examples.
        seed: of the order, and of the tasks where `schedule` is left out.
        schedule: which task a batch is of; in proportion to the sizes if left out.
        batches_per_step: batches that one optimizer step takes.

    Raises:
        ConfigError: no task, or a size or batch size below 1.
    """

    def __init__(
        self,
        tasks: Sequence[TaskExamples],
        seed: int,
        schedule: RoundRobinSchedule | RandomSchedule | None = None,
        batches_per_step: int = 1,
    ):
        sizes, batch_sizes = [t.size for t in tasks], [t.batch_size for t in tasks]
        if min([*sizes, *batch_sizes], default=0) < 1:
            raise ConfigError(
                f"batch sequence: expected sizes and batch sizes above 0, one for each task, got "
                f"{sizes} and {batch_sizes}"
            )
        self._tasks, self._seed = tuple(tasks), seed
        self._per_epoch = sum(task.num_batches for task in tasks)
        names = list(map(str, range(len(tasks))))
        self._schedule = schedule or task_schedule(
            MixingConfig(), names, sizes, seed, batches_per_epoch=self._per_epoch, num_epochs=1
        )
        self.batches_per_step = batches_per_step
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
        number_of_task, position = self._schedule.place(number)
        task = self._tasks[number_of_task]
        epoch, within = divmod(position, task.num_batches)
        rows = slice(within * task.batch_size, (within + 1) * task.batch_size)
        return number_of_task, self._order(number_of_task, epoch)[rows]

    def _order(self, number: int, epoch: int) -> np.ndarray:
        if (number, epoch) not in self._orders:
            # Labels are requested in advance, so that two epochs are in use where they meet.
            for earlier in [key for key in self._orders if key[0] == number and key[1] < epoch - 1]:
                del self._orders[earlier]
            size, batch_size, rounds, lengths = self._tasks[number]
            first = epoch % rounds * size
            self._orders[number, epoch] = first + epoch_order(
                self._seed,
                number,
                epoch,
                size,
                batch_size=batch_size,
                lengths=None if lengths is None else lengths[first : first + size],
            )
        return self._orders[number, epoch]


def rank_rows(rows: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Return the part of a global batch that a rank takes; it may be empty."""
    return rows[rank::world_size]


def micro_batches(rows: np.ndarray, count: int) -> list[np.ndarray]:
    """Split rows into `count` parts of nearly the same size, in order; parts may be empty."""
    return np.array_split(rows, count)
