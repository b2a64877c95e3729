"""Things made one after another in a thread beside the one that takes them, a few ahead of it.

    thread: make(0), make(1), … ──► queue of `depth` ──► for made in ahead: …

The order is that of the steps, and what is made doesn't depend on when: with any depth the same
things come out. Depth 0 makes each thing when it is taken, without a thread.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

__all__ = ["Ahead"]

Made = TypeVar("Made")

_LEAVE_S = 5.0
"""A thread that waits for labels that never come is left behind after so long; it is a daemon."""


@dataclass(frozen=True)
class _Failed:
    error: BaseException


class Ahead(Generic[Made]):
    """Makes what each step needs while the steps before it are taken.

    Args:
        make: from a step to what it needs; called in order, from one thread alone.
        steps: for which.
        depth: how many may lie ready, besides the one that is being made.

    Attributes:
        waited_s: seconds that it took until the thing that was taken last was there.
    """

    def __init__(self, make: Callable[[int], Made], steps: range, depth: int):
        self._make, self._steps, self._depth = make, steps, depth
        self._ready: queue.Queue[Made | _Failed] = queue.Queue(max(depth, 1))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raybrew-ahead", daemon=True)
        self.waited_s = 0.0

    def __enter__(self) -> "Ahead[Made]":
        if self._depth:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        if not self._depth:
            return
        # Room for what the thread is putting; it makes nothing after that.
        while not self._ready.empty():
            self._ready.get_nowait()
        self._thread.join(_LEAVE_S)

    def __iter__(self) -> Iterator[Made]:
        """Yield what each step needs, waiting for it where it isn't ready.

        Raises:
            BaseException: what making it raised.
        """
        for step in self._steps:
            start = time.perf_counter()
            made = self._ready.get() if self._depth else self._make(step)
            self.waited_s = time.perf_counter() - start
            if isinstance(made, _Failed):
                raise made.error
            yield made

    def _run(self) -> None:
        for step in self._steps:
            if self._stopped.is_set():
                return
            try:
                made = self._make(step)
            except BaseException as error:  # raised again by who takes it
                self._ready.put(_Failed(error))
                return
            self._ready.put(made)
