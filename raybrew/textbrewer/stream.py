"""The batches of a script's data loader, pass after pass, and the way back to any of them.

A loader's order is drawn when a pass begins. A position is the state of the generators at that
moment and the number of batches taken since, so that a training that goes on reads what it would
have read.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from raybrew.errors import DataError
from raybrew.textbrewer.rng import generators, restore_generators


@dataclass
class Stream:
    """Batches of a loader without end.

    Args:
        loader: a `DataLoader`, or whatever can be iterated over again and again.
        begin_pass: told the number of each pass before it begins, from 0.
    """

    loader: Iterable[Any]
    begin_pass: Callable[[int], None] = lambda number: None
    _batches: Iterator[Any] | None = field(default=None, init=False)
    _drawn_from: dict[str, Any] | None = field(default=None, init=False)
    _pass: int = field(default=-1, init=False)
    _taken: int = field(default=0, init=False)

    def next(self) -> Any:
        """Return the next batch; begins the next pass where one ends.

        Raises:
            DataError: a pass without a batch.
        """
        for _ in range(2):
            if self._batches is None:
                self._begin(self._pass + 1)
            assert self._batches is not None
            try:
                batch = next(self._batches)
            except StopIteration:
                self._batches = None
                continue
            self._taken += 1
            return batch
        raise DataError(
            "dataloader: expected at least one batch in each pass, got none; a generator can be "
            "read once alone: give a DataLoader or a list"
        )

    def position(self) -> dict[str, Any]:
        """Return where it is, for JSON."""
        return {"pass": self._pass, "taken": self._taken, "drawn_from": self._drawn_from}

    def seek(self, position: dict[str, Any]) -> None:
        """Go to a position; leaves the generators at what the pass was drawn from, and beyond."""
        if position["drawn_from"] is None:
            return
        restore_generators(position["drawn_from"])
        self._begin(position["pass"])
        for _ in range(position["taken"]):
            self.next()

    def _begin(self, number: int) -> None:
        self.begin_pass(number)
        self._drawn_from = generators()
        self._batches = iter(self.loader)
        self._pass, self._taken = number, 0
