"""A replica behind a queue: what `pool` wraps in an actor. No Ray here.

    requests ──► queue ──► gathered up to a number of tokens, or a short while ──► answered at once

All of a replica's work, the model's and the store's, happens on one thread, that of a
`DynamicBatcher`: nothing needs a lock but its queue, and metrics are read during a forward. The
methods of `ReplicaHost` are coroutines, which only wait for it.

Nothing here imports torch before a replica is made: a process that unpickles a handle, as the
router does, imports this module with it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from raybrew.data.encoding import EncodedView
    from raybrew.data.payload import Signal
    from raybrew.labels.remote import StoreSpec
    from raybrew.teachers.replica import Answer
    from raybrew.teachers.teacher import ResolvedTeacher

logger = logging.getLogger(__name__)

FAILED_FLUSH_S = 10.0
"""After labels could not be written, the next try comes so much later."""
GATHER_S = 0.003
"""How long a small request waits for more to share its forward with."""
GATHER_BATCHES = 8
"""Token budgets that are gathered: sorting more examples by length leaves less padding, and one
forward in so many is not full."""


@dataclass
class _Work:
    job: Callable[[], Any] | None = None
    view: EncodedView | None = None
    signals: tuple[Signal, ...] = ()
    alone: bool = False
    future: Future = field(default_factory=Future)
    since_s: float = field(default_factory=time.monotonic)

    @property
    def tokens(self) -> int:
        return 0 if self.view is None else len(self.view.input_ids)

    @property
    def stands_alone(self) -> bool:
        return self.job is not None or self.alone


class DynamicBatcher:
    """Answers requests and runs jobs on a thread of its own, until its process ends.

    Args:
        answer: gives each of several requests for the same signals its answer, or the error that
            it ends in.
        tokens: no further request is gathered beyond so many.
        wait_s: how long a small batch waits for more.
        forward_tokens: of a full forward; where more requests wait than are gathered, those that
            would leave the last forward half empty wait for the next batch.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[EncodedView], tuple[Signal, ...]], Sequence[Any]],
        *,
        tokens: int,
        wait_s: float,
        forward_tokens: int = 1,
    ):
        self._answer, self._tokens, self._wait_s = answer, tokens, wait_s
        self._forward_tokens = forward_tokens
        self._queue: deque[_Work] = deque()
        self._changed = threading.Condition()
        self._at_work = 0
        threading.Thread(target=self._work, name="raybrew-teacher", daemon=True).start()

    def ask(self, view: EncodedView, signals: tuple[Signal, ...], *, alone: bool = False) -> Future:
        """Queue a request; one that is `alone` is batched with no other."""
        return self._put(_Work(view=view, signals=signals, alone=alone))

    def run(self, job: Callable[[], Any], *, first: bool = False) -> Future:
        """Queue a job; `first`: before all that waits."""
        return self._put(_Work(job=job), first)

    def queue_age_s(self) -> float:
        """Return for how long the oldest in the queue has waited, seconds."""
        with self._changed:
            oldest = min((work.since_s for work in self._queue), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    def num_waiting(self) -> int:
        """Return how many requests and jobs wait or are at work."""
        with self._changed:
            return len(self._queue) + self._at_work

    def _put(self, work: _Work, first: bool = False) -> Future:
        with self._changed:
            (self._queue.appendleft if first else self._queue.append)(work)
            self._changed.notify()
        return work.future

    def _work(self) -> None:
        while True:
            # From here on none of them can be cancelled.
            batch = [each for each in self._gather() if each.future.set_running_or_notify_cancel()]
            for work, answer in zip(batch, self._answers(batch), strict=True):
                if isinstance(answer, Exception):
                    work.future.set_exception(answer)
                else:
                    work.future.set_result(answer)
            self._at_work = 0

    def _answers(self, batch: list[_Work]) -> Sequence[Any]:
        # The thread outlives whatever a job raises; its caller gets the error.
        try:
            if batch and batch[0].job is not None:
                return [batch[0].job()]
            views = [work.view for work in batch if work.view is not None]
            return self._answer(views, batch[0].signals) if views else []
        except Exception as error:
            return [error] * len(batch)

    def _gather(self) -> list[_Work]:
        with self._changed:
            self._changed.wait_for(lambda: self._queue)
            batch = [self._queue.popleft()]
            self._at_work = 1
            if batch[0].stands_alone:
                return batch
            until_s = time.monotonic() + self._wait_s
            tokens = batch[0].tokens
            while tokens < self._tokens:
                left_s = max(0.0, until_s - time.monotonic())
                if not self._changed.wait_for(lambda: self._queue, left_s):
                    break
                following = self._queue[0]
                if following.stands_alone or following.signals != batch[0].signals:
                    break
                batch.append(self._queue.popleft())
                tokens += batch[-1].tokens
            else:
                kept = fullest([work.tokens for work in batch], self._forward_tokens)
                self._queue.extendleft(reversed(batch[kept:]))
                del batch[kept:]
            return batch


def fullest(tokens: Sequence[int], forward_tokens: int) -> int:
    """Return how many of the first requests fill their forwards best, the most of equals.

    Args:
        tokens: of each request.
        forward_tokens: of a full forward.
    """
    totals = np.cumsum(tokens)
    fill = totals / np.maximum(np.ceil(totals / forward_tokens) * forward_tokens, 1)
    return len(fill) - int(np.argmax(fill[::-1]))


class ReplicaHost:
    """Hosts one replica of a teacher."""

    def __init__(self, spec: ResolvedTeacher, signals: tuple[Signal, ...], store: StoreSpec | str):
        from raybrew.teachers.replica import Replica

        self._replica = Replica(spec, signals, store)
        self._batcher = DynamicBatcher(
            self._replica.ask_together,
            tokens=GATHER_BATCHES * spec.forward_tokens,
            wait_s=GATHER_S,
            forward_tokens=spec.forward_tokens,
        )
        self._flushing: Future | None = None
        self._no_flush_until_s = 0.0

    async def load(self) -> None:
        """Load the model."""
        await asyncio.wrap_future(self._batcher.run(self._replica.load))

    async def ask(
        self, view: EncodedView, signals: tuple[Signal, ...], alone: bool = False
    ) -> Answer:
        """See `Replica.ask`; requests that come together are answered together.

        Args:
            view: the examples.
            signals: what is asked for.
            alone: a replica failed with it: it shares no forward with another request.
        """
        return await asyncio.wrap_future(self._batcher.ask(view, signals, alone=alone))

    async def fill(self, folder: str, view_name: str, rows: np.ndarray, patient: bool) -> Answer:
        """See `Replica.fill`."""
        fill = self._batcher.run(
            lambda: self._replica.fill(folder, view_name, rows, patient=patient)
        )
        return await asyncio.wrap_future(fill)

    async def flush(self) -> None:
        """Write what is not on disk yet, before anything else that waits."""
        await asyncio.wrap_future(self._batcher.run(self._replica.flush, first=True))

    async def health(self, batch_tokens: int | None = None) -> dict[str, Any]:
        """Return metrics, and what tells a replica that works from one that hangs.

        Args:
            batch_tokens: most tokens of a forward from now on, if a larger one failed.

        Returns:
            `Replica.metrics`; `life`, which differs after a restart; `forward_s`, `lease_wait_s`
            and `unwritten_s` of the replica, and the queue's `queue_age_s`, seconds; how many
            requests wait or are at work (`num_waiting`).
        """
        if batch_tokens is not None:
            self._replica.shrink(batch_tokens)
        self._flush_if_due()
        return {
            **self._replica.metrics(),
            "life": self._replica.life,
            "forward_s": self._replica.forward_s(),
            "lease_wait_s": self._replica.lease_wait_s(),
            "unwritten_s": self._replica.unwritten_s(),
            "queue_age_s": self._batcher.queue_age_s(),
            "num_waiting": self._batcher.num_waiting(),
        }

    def _flush_if_due(self) -> None:
        # One that has nothing to do would keep others waiting, and its labels in memory.
        if self._flushing is not None and self._flushing.done():
            error, self._flushing = self._flushing.exception(), None
            if error is not None:  # the next request ends in it
                logger.warning("labels could not be written: %s", error)
                self._no_flush_until_s = time.monotonic() + FAILED_FLUSH_S
        due = self._replica.flush_due() and time.monotonic() > self._no_flush_until_s
        if due and self._flushing is None:
            self._flushing = self._batcher.run(self._replica.flush, first=True)
