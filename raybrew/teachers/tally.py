"""Which labels of a teacher were computed, each counted once, and once more when computed again.

The word of an answer may be late: its replica was lost, its asker told of it afterwards. It may
never come: the replica died with its label on disk, before anybody had the answer. Both are told
apart here by what the answers to other questions say of the same keys.
"""

from collections import Counter, deque
from collections.abc import Callable

import numpy as np

from raybrew.teachers.tickets import RouterCounts

__all__ = ["Tally"]

REMEMBERED = 1 << 18
"""Labels on disk of which is remembered that they were counted, for answers that are told late."""


class Tally:
    """Counts what answers say."""

    def __init__(self):
        self.counts = RouterCounts()
        # Tickets that nobody waits for any longer, whose answer may be told of all the same: their
        # keys, and in how many of them a key is.
        self._late: dict[int, list[int]] = {}
        self._missing: Counter[int] = Counter()
        # Keys that were counted, as long as they are not on disk and some time longer.
        self._counted: set[int] = set()
        self._on_disk: deque[int] = deque()
        # Counted because they were known though nobody had told who computed them: the lost one.
        self._untold: set[int] = set()

    def answered(
        self,
        keys: list[int],
        computed: np.ndarray,
        left: np.ndarray,
        under_way: Callable[[], set[int]],
    ) -> None:
        """Count an answer.

        Args:
            keys: that were asked for, n of them.
            computed: which of them cost a forward, bool (n,).
            left: rows of those that have no label yet, int64; the others were known or computed.
            under_way: gives the keys of all questions that are still to be answered.
        """
        made = {key for key, new in zip(keys, computed.tolist(), strict=True) if new}
        untold = self._made_by_the_lost(set(keys) - made - _of(keys, left), under_way)
        self.counts.forwards += len(made) + len(untold)
        self.counts.recomputed += len(made & self._counted)
        self._untold |= untold
        self._counted |= made | untold

    def given_up(self, number: int, keys: list[int]) -> None:
        """Note that nobody waits for the answer to a ticket any longer."""
        self._late[number] = keys
        self._missing.update(keys)

    def is_late(self, number: int) -> bool:
        """Return whether a ticket was given up, and its answer was not told of yet."""
        return number in self._late

    def answered_late(
        self,
        number: int,
        computed: np.ndarray,
        left: np.ndarray,
        under_way: Callable[[], set[int]],
    ) -> None:
        """Count the answer to a ticket that was given up; the rest as in `answered`."""
        keys = self._late.pop(number)
        self._missing.subtract(keys)
        told = computed & np.array([key in self._untold for key in keys])
        self._untold -= _of(keys, np.flatnonzero(told))
        self.answered(keys, computed & ~told, left, under_way)

    def on_disk(self, keys: list[int]) -> None:
        """Note that labels are where nobody has to compute them again."""
        self._on_disk.extend(keys)
        while len(self._on_disk) > REMEMBERED:
            self._counted.discard(self._on_disk.popleft())

    def _made_by_the_lost(self, known: set[int], under_way: Callable[[], set[int]]) -> set[int]:
        """Return which of these labels nobody computed but a lost replica, whose word is missing.

        Another run's replica may have been before it: then they count in both.
        """
        unsure = {key for key in known if self._missing[key]} - self._counted
        # The answer to a question that is under way may tell who it was.
        return unsure - under_way() if unsure else unsure


def _of(keys: list[int], rows: np.ndarray) -> set[int]:
    return {keys[row] for row in rows.tolist()}
