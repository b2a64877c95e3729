"""Which task a batch is drawn from: a function of (seed, number of the batch) alone.

    sizes, mixing ──► probabilities of an epoch ──► draws in blocks ──► task, its how-manieth batch

One uniform number is drawn for each batch whatever the probabilities are, so that they may change
from epoch to epoch, and any batch can be looked up without those before it.
"""

from collections.abc import Callable, Sequence

import numpy as np

from raybrew.config import MixingConfig
from raybrew.errors import ConfigError

__all__ = [
    "RandomDraws",
    "TurnDraws",
    "check_mixing",
    "proportional",
    "t5_shares",
    "task_draws",
]

_BLOCK = 1024

Probabilities = Callable[[int], np.ndarray]


class TurnDraws:
    """Each task in turn."""

    def __init__(self, num_tasks: int):
        self._num_tasks = num_tasks

    def place(self, number: int) -> tuple[int, int]:
        """Return the task of a batch, and how many of its batches came before."""
        position, task = divmod(number, self._num_tasks)
        return task, position


class RandomDraws:
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


def task_draws(
    mixing: MixingConfig,
    names: Sequence[str],
    sizes: Sequence[int],
    seed: int,
    *,
    batches_per_epoch: int,
    num_epochs: float,
) -> TurnDraws | RandomDraws:
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
        return TurnDraws(len(names))
    if mixing.sampling == "annealed":

        def probabilities(epoch: int) -> np.ndarray:
            done = min(1.0, epoch / max(num_epochs - 1, 1e-9))
            return proportional(sizes, mixing.tau + (mixing.tau_end - mixing.tau) * done)

    else:

        def probabilities(epoch: int) -> np.ndarray:
            return same

    return RandomDraws(len(names), seed, probabilities, batches_per_epoch)


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
