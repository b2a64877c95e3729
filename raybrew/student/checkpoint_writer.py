"""Writes checkpoints while training goes on: one thread, one checkpoint at a time.

training ──Snapshot──► thread ──► Checkpoints.write
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from raybrew.student.checkpoint import Snapshot
from raybrew.student.checkpoints import Checkpoints

__all__ = ["CheckpointWriter"]


class CheckpointWriter:
    """A context manager; when it ends, everything is on disk.

    Args:
        checkpoints: where to.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="raybrew-checkpoint")
        self._writing: Future[Path] | None = None

    def submit(self, snapshot: Snapshot) -> None:
        """Write a snapshot in the background, once the one before is on disk.

        Raises:
            CheckpointError: the one before could not be written.
        """
        self.wait()
        self._writing = self._pool.submit(self._checkpoints.write, snapshot.step, snapshot.write)

    def wait(self) -> None:
        """Return when all that was submitted is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown()
