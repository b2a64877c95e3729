"""What the training loop tells the world, and what it asks of it."""

from pathlib import Path
from typing import Protocol

from raybrew.events import Event
from raybrew.student.checkpoint import Snapshot

__all__ = ["Hooks", "Saver"]


class Hooks(Protocol):
    """What the loop tells the world."""

    def begin(self, step: int, num_steps: int) -> None:
        """Training starts, or goes on, after `step` steps; on rank 0 only."""
        ...

    def losses(self, step: int, values: dict[str, float]) -> None:
        """Losses of a global batch; on rank 0 only."""
        ...

    def progress(self, step: int) -> None:
        """`step` steps are done; on rank 0 only."""
        ...

    def evaluating(self, done: int, total: int) -> None:
        """`done` examples of an evaluation are done; on rank 0 only."""
        ...

    def evaluated(self, step: int, values: dict[str, float], save: "Saver") -> None:
        """An evaluation is done; every rank calls it equally often."""
        ...

    def checkpoint(self, snapshot: Snapshot) -> None:
        """A checkpoint is due; on rank 0 only, which holds all of it."""
        ...

    def save_asked(self) -> bool:
        """Whether a checkpoint is asked for at once; every rank calls it, and gets one answer."""
        ...

    def survived(self, event: Event) -> None:
        """Something went wrong, and training goes on; on rank 0 only."""
        ...


class Saver(Protocol):
    """Writes the checkpoint of this moment."""

    def __call__(self, folder: Path) -> None:
        """Write into an empty folder."""
        ...
