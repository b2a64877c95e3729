"""What a replica has answered, for the desk to hear: also what its asker can't report any more.

asker ──question, ticket──► replica ──answer──► asker ──ticket──► desk
                               └──► Ledger ──with each health check──► desk

An asker that is killed, or interrupted, leaves questions behind that are computed all the same.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np

    from raybrew.teachers.answer import Answer

__all__ = ["Entry", "Ledger"]


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
