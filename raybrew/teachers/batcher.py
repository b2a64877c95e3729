"""Dynamic batching: one compute thread answers requests of several callers together.

    questions ──► queue ──► gathered up to a number of tokens, or a short while ──► answered at once

All of a replica's work happens on this thread: the model's, the store's. Nothing needs a lock but
the queue, and figures are read while it computes.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raybrew.data.encoding import EncodedView
from raybrew.data.payload import Signal

Signals = tuple[Signal, ...]


@dataclass
class _Work:
    job: Callable[[], Any] | None = None
    view: EncodedView | None = None
    signals: Signals = ()
    alone: bool = False
    future: Future = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)

    @property
    def tokens(self) -> int:
        return 0 if self.view is None else len(self.view.input_ids)

    @property
    def stands_alone(self) -> bool:
        return self.job is not None or self.alone


class DynamicBatcher:
    """Runs questions and jobs on a thread of its own, one batch after another.

    Args:
        answer: gives each of several questions about the same signals its answer, or the error
            that it ends in.
        tokens: no further question is gathered beyond so many.
        wait_s: how long a small batch waits for more.
        forward_tokens: of a full forward; where more questions wait than are gathered, those
            that would leave the last forward half empty wait for the next batch.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[EncodedView], Signals], Sequence[Any]],
        *,
        tokens: int,
        wait_s: float,
        forward_tokens: int = 1,
    ):
        self._answer, self._tokens, self._wait_s = answer, tokens, wait_s
        self._forward_tokens = forward_tokens
        self._queue: deque[_Work] = deque()
        self._changed = threading.Condition()
        self._over = False
        self._at_work = 0
        self._thread = threading.Thread(target=self._work, name="raybrew-teacher", daemon=True)
        self._thread.start()

    def ask(self, view: EncodedView, signals: Signals, *, alone: bool = False) -> Future:
        """Queue a question; one that is `alone` is gathered with no other."""
        return self._put(_Work(view=view, signals=signals, alone=alone))

    def run(self, job: Callable[[], Any], *, first: bool = False) -> Future:
        """Queue a job; `first`: before all that waits."""
        return self._put(_Work(job=job), first)

    def queue_age_s(self) -> float:
        """Return for how long the oldest in the queue has waited, seconds."""
        with self._changed:
            oldest = min((work.since for work in self._queue), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    def waiting(self) -> int:
        """Return how many questions and jobs wait or are at work."""
        with self._changed:
            return len(self._queue) + self._at_work

    def close(self) -> None:
        """End the thread after what it is at; what waits is cancelled."""
        with self._changed:
            self._over = True
            waiting = list(self._queue)
            self._queue.clear()
            self._changed.notify()
        for work in waiting:
            work.future.cancel()
        self._thread.join()

    def _put(self, work: _Work, first: bool = False) -> Future:
        with self._changed:
            if self._over:
                work.future.cancel()
                return work.future
            (self._queue.appendleft if first else self._queue.append)(work)
            self._changed.notify()
        return work.future

    def _work(self) -> None:
        while batch := self._gather():
            # From here on they can't be cancelled.
            batch = [work for work in batch if work.future.set_running_or_notify_cancel()]
            for work, answer in zip(batch, self._answers(batch), strict=True):
                if isinstance(answer, Exception):
                    work.future.set_exception(answer)
                else:
                    work.future.set_result(answer)
            self._at_work = 0

    def _answers(self, batch: list[_Work]) -> Sequence[Any]:
        # The thread outlives whatever a job raises; who asked for it gets it.
        try:
            if batch and batch[0].job is not None:
                return [batch[0].job()]
            views = [work.view for work in batch if work.view is not None]
            return self._answer(views, batch[0].signals) if views else []
        except Exception as error:
            return [error] * len(batch)

    def _gather(self) -> list[_Work]:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._over)
            if self._over:
                return []
            batch = [self._queue.popleft()]
            self._at_work = 1
            if batch[0].stands_alone:
                return batch
            until = time.monotonic() + self._wait_s
            tokens = batch[0].tokens
            while tokens < self._tokens:
                left = max(0.0, until - time.monotonic())
                if not self._changed.wait_for(lambda: self._queue, left):
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
    """Return how many of the first questions fill their forwards best, the most of equals.

    Args:
        tokens: of each question.
        forward_tokens: of a full forward.
    """
    totals = np.cumsum(tokens)
    fill = totals / np.maximum(np.ceil(totals / forward_tokens) * forward_tokens, 1)
    return len(fill) - int(np.argmax(fill[::-1]))
