"""When checkpoints are due: every so many steps, or minutes."""

import time
from collections.abc import Callable

from raybrew.student.world import World

__all__ = ["Cadence"]


class Cadence:
    """Says of each step whether a checkpoint is due after it, the same on every rank.

    Args:
        every: steps between checkpoints.
        minutes: time between them, by the clock of rank 0.
        world: this rank.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        every: int | None,
        minutes: float | None,
        world: World,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._every, self._minutes, self._world = every, minutes, world
        self._clock = clock
        self._last = clock()

    @property
    def is_set(self) -> bool:
        """Whether there is a cadence at all."""
        return self._every is not None or self._minutes is not None

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after `step` steps; a collective with minutes."""
        by_steps = self._every is not None and step % self._every == 0
        if self._minutes is None:
            return by_steps
        late = self._clock() - self._last >= self._minutes * 60
        due = bool(self._world.of_rank_0(float(by_steps or late)))
        if due:
            self._last = self._clock()
        return due
