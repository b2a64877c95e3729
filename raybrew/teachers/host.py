"""A replica behind a queue: what the pool wraps in an actor."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

# What a replica has answered, for the desk to hear: also what its asker can't report any more.
#
# asker ──question, ticket──► replica ──answer──► asker ──ticket──► desk
#                                └──► Ledger ──with each health check──► desk
#
# An asker that is killed, or interrupted, leaves questions behind that are computed all the same.

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np

    from raybrew.teachers.replica import Answer


@dataclass(frozen=True)
class Entry:
    """An answer.

    Args:
        place: in the ledger, from 1 on.
        ticket: number of the ticket that it is the answer to.
        computed: which of its rows cost a forward, bool (n,).
        left: its rows that have no label yet, int64.
    """

    place: int
    ticket: int
    computed: np.ndarray
    left: np.ndarray


class Ledger:
    """Keeps answers until they were heard; written by the compute thread, read by others."""

    def __init__(self):
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._count = 0
        self._forgotten = self._on_disk = 0

    def expect(self, ticket: int, answer: Future) -> Future:
        """Note an answer as soon as it is there, before anybody gets it; an error is none."""

        def note(done: Future) -> None:
            if not done.cancelled() and done.exception() is None:
                self._add(ticket, done.result())

        answer.add_done_callback(note)
        return answer

    def since(self, heard: int) -> list[Entry]:
        """Return what came after a place, and forget what came before."""
        with self._lock:
            gone = [entry for entry in self._entries if entry.place <= heard]
            self._forgotten += sum(int(entry.computed.sum()) for entry in gone)
            self._entries = self._entries[len(gone) :]
            return list(self._entries)

    def wrote(self) -> None:
        """Note that the labels of all answers so far are on disk; called by the compute thread."""
        with self._lock:
            self._on_disk = self._count

    def on_disk(self) -> int:
        """Return up to which place the answers' labels are on disk."""
        with self._lock:
            return self._on_disk

    def forgotten(self) -> int:
        """Return how many forwards the answers cost that were forgotten."""
        with self._lock:
            return self._forgotten

    def _add(self, ticket: int, answer: Answer) -> None:
        with self._lock:
            self._count += 1
            self._entries.append(Entry(self._count, ticket, answer.computed, answer.left))


# A replica behind a queue: what `pool` wraps in an actor. No Ray here.
#
# Its methods are coroutines, so that many questions wait at once and figures are given during a
# forward: the work is the compute thread's (see `gatherer`), the event loop only waits for it.
#
# Nothing here imports torch before a replica is made: whoever unpickles a handle, as the desk does,
# gets this module with it.

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np

    from raybrew.data.encoding import EncodedView
    from raybrew.data.payload import Signal
    from raybrew.labels.remote import StoreSpec
    from raybrew.teachers.replica import Answer
    from raybrew.teachers.teacher import ResolvedTeacher


logger = logging.getLogger(__name__)

FAILED_FLUSH_S = 10.0
"""So long nothing is written unasked after labels couldn't be."""
GATHER_S = 0.003
"""How long a small question waits for more to share its forward with."""
GATHER_BATCHES = 8
"""Token budgets that are gathered: sorting more examples by length leaves less padding, and one
forward in so many is not full."""


class ReplicaHost:
    """Hosts one replica of a teacher."""

    def __init__(self, spec: ResolvedTeacher, signals: tuple[Signal, ...], store: StoreSpec | str):
        from raybrew.teachers.batcher import DynamicBatcher
        from raybrew.teachers.replica import Replica

        self._ledger = Ledger()
        self._replica = Replica(spec, signals, store, on_flush=self._ledger.wrote)
        self._gatherer = DynamicBatcher(
            self._replica.ask_together,
            tokens=GATHER_BATCHES * spec.forward_tokens,
            wait_s=GATHER_S,
            forward_tokens=spec.forward_tokens,
        )
        self._flushing: Future | None = None
        self._no_flush_until = 0.0

    async def load(self) -> None:
        """Load the model."""
        await asyncio.wrap_future(self._gatherer.run(self._replica.load))

    async def ask(
        self, view: EncodedView, signals: tuple[Signal, ...], ticket: int, alone: bool = False
    ) -> Answer:
        """See `Replica.ask`; questions that come together are answered together.

        Args:
            view: the examples.
            signals: what is asked for.
            ticket: number of the desk's ticket for it.
            alone: a replica failed with it: it shares no forward with another question.
        """
        answer = self._gatherer.ask(view, signals, alone=alone)
        return await asyncio.wrap_future(self._ledger.expect(ticket, answer))

    async def fill(
        self, folder: str, view_name: str, rows: np.ndarray, patient: bool, ticket: int
    ) -> Answer:
        """See `Replica.fill`; `ticket` as with `ask`."""
        answer = self._gatherer.run(
            lambda: self._replica.fill(folder, view_name, rows, patient=patient)
        )
        return await asyncio.wrap_future(self._ledger.expect(ticket, answer))

    async def flush(self) -> None:
        """Write what is not on disk yet, before anything else that waits."""
        await asyncio.wrap_future(self._gatherer.run(self._replica.flush, first=True))

    async def health(
        self, life: str = "", heard: int = 0, batch_tokens: int | None = None
    ) -> dict[str, Any]:
        """Return figures, and what tells a replica that works from one that hangs.

        Args:
            life: of which the asker has heard.
            heard: up to which place of the ledger of that life.
            batch_tokens: most tokens of a forward from now on, if a larger one failed.

        Returns:
            `ReplicaMetrics`, `forward_s`, `others_s` and `queue_age_s`, seconds, how many questions
            are `waiting` or at work, `life`, which differs after a restart, the `answers` that were
            not heard yet, how many forwards those cost that were `heard`, and up to which place of
            the ledger labels are `on_disk`.
        """
        if batch_tokens is not None:
            self._replica.shrink(batch_tokens)
        self._flush_if_due()
        answers = self._ledger.since(heard if life == self._replica.life else 0)
        return {
            **self._replica.figures(),
            "forward_s": self._replica.forward_s(),
            "others_s": self._replica.others_s(),
            "queue_age_s": self._gatherer.queue_age_s(),
            "waiting": self._gatherer.waiting(),
            "life": self._replica.life,
            "answers": answers,
            "heard": self._ledger.forgotten(),
            "on_disk": self._ledger.on_disk(),
        }

    def _flush_if_due(self) -> None:
        # One that has nothing to do would keep others waiting, and its labels in memory.
        if self._flushing is not None and self._flushing.done():
            error, self._flushing = self._flushing.exception(), None
            if error is not None:  # the next question ends in it
                logger.warning("labels could not be written: %s", error)
                self._no_flush_until = time.monotonic() + FAILED_FLUSH_S
        due = self._replica.flush_due() and time.monotonic() > self._no_flush_until
        if due and self._flushing is None:
            self._flushing = self._gatherer.run(self._replica.flush, first=True)
