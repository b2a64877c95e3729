"""The sequence of global batches: a function of (seed, step) alone."""

from collections.abc import Callable, Sequence

import numpy as np

from raybrew.config import MixingConfig
from raybrew.errors import ConfigError

# Which task a batch is drawn from: a function of (seed, number of the batch) alone.
#
#     sizes, mixing ──► probabilities of an epoch ──► draws in blocks ──► task, its how-manieth
# batch
#
# One uniform number is drawn for each batch whatever the probabilities are, so that they may change
# from epoch to epoch, and any batch can be looked up without those before it.

_BLOCK = 1024

Probabilities = Callable[[int], np.ndarray]


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
        self, num_tasks: int, seed: int, probabilities: Probabilities, batches_per_epoch: int
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
        if self._last[0] != block:
            self._last = block, self._drawn(block)
        return self._last[1]

    def _drawn(self, block: int) -> np.ndarray:
        generator = np.random.Generator(np.random.PCG64([self._seed, self._num_tasks, block]))
        uniform = generator.random(_BLOCK)
        epochs = (block * _BLOCK + np.arange(_BLOCK)) // self._batches_per_epoch
        tasks = np.empty(_BLOCK, np.int64)
        for epoch in np.unique(epochs):
            upper = self._probabilities(int(epoch)).cumsum()
            mine = epochs == epoch
            tasks[mine] = (upper / upper[-1]).searchsorted(uniform[mine], side="right")
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
        ConfigError: probabilities that can't be.
    """
    same = _shares(mixing, names, sizes)
    if mixing.sampling == "every" or len(names) == 1:
        return RoundRobinSchedule(len(names))
    if mixing.sampling == "annealed":

        def probabilities(epoch: int) -> np.ndarray:
            done = min(1.0, epoch / max(num_epochs - 1, 1e-9))
            return proportional(sizes, mixing.tau + (mixing.tau_end - mixing.tau) * done)

    else:

        def probabilities(epoch: int) -> np.ndarray:
            return same

    return RandomSchedule(len(names), seed, probabilities, batches_per_epoch)


def check_mixing(mixing: MixingConfig, names: Sequence[str]) -> None:
    """Refuse what doesn't fit the tasks, before their sizes are known.

    Raises:
        ConfigError: probabilities that can't be.
    """
    _shares(mixing, names, [1] * len(names))


def proportional(sizes: Sequence[int], tau: float = 1.0) -> np.ndarray:
    """Return p ∝ size^τ of each task.

    Reference:
        Stickland and Murray 2019, arXiv:1902.02671.
    """
    return _normalised([float(size) ** tau for size in sizes], len(sizes))


def t5_shares(sizes: Sequence[int], limit: int, temperature: float) -> np.ndarray:
    """Return p ∝ min(size, K)^(1/T) of each task.

    Reference:
        Raffel et al. 2020, arXiv:1910.10683, section 3.5.2.
    """
    shares = [float(min(size, limit)) ** (1 / temperature) for size in sizes]
    return _normalised(shares, len(sizes))


def _shares(mixing: MixingConfig, names: Sequence[str], sizes: Sequence[int]) -> np.ndarray:
    if mixing.sampling == "t5":
        return t5_shares(sizes, mixing.limit, mixing.temperature)
    if mixing.sampling == "fixed":
        given = mixing.probabilities or {}
        if given.keys() != set(names):
            raise ConfigError(
                f"mixing.probabilities: expected one for each task ({', '.join(names)}), got "
                f"{', '.join(given) or 'none'}"
            )
        return _normalised([given[name] for name in names], len(names))
    return proportional(sizes, mixing.tau)


def _normalised(shares: Sequence[float], count: int) -> np.ndarray:
    values = np.asarray(shares, np.float64)
    if (
        len(values) != count
        or not np.isfinite(values).all()
        or values.min() < 0
        or not values.sum()
    ):
        raise ConfigError(
            f"mixing: expected {count} shares of tasks ≥ 0 with a sum above 0, got {list(shares)}"
        )
    return values / values.sum()


# The order in which an epoch meets its examples: drawn, or drawn and grouped by length.
#
# permutation ──► pools of neighbouring rows ──► each sorted by length ──► cut into batches ──►
# the batches in an order that is drawn ──► what doesn't fill a batch comes last

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


# The sequence of global batches: a function of (seed, step), whoever asks and how many they are.
#
#     step ──► its batches ──► task of each (mixing.py) ──► position in the task's own epochs ──►
# rows
#
# A step takes one batch, or several, each of a task of its own. Epoch e of task d is an order drawn
# from (seed, d, e); its last batch may be smaller. So a run that was stopped goes on where it was,
# and the number of workers changes nothing.


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
        draws: RoundRobinSchedule | RandomSchedule | None = None,
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


def _proportional_draws(
    sizes: Sequence[int], seed: int, per_epoch: int
) -> RoundRobinSchedule | RandomSchedule:
    if len(sizes) == 1:
        return RoundRobinSchedule(1)
    shares = proportional(sizes)
    return RandomSchedule(len(sizes), seed, lambda epoch: shares, per_epoch)


def rank_rows(rows: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Return the part of a global batch that a rank takes; it may be empty."""
    return rows[rank::world_size]


def micro_batches(rows: np.ndarray, count: int) -> list[np.ndarray]:
    """Split rows into `count` parts of nearly the same size, in order; parts may be empty."""
    return np.array_split(rows, count)
