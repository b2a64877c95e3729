"""Soft labels for a rank, in the order of its steps, asked for before they are needed.

    steps of the next windows ──► keys ──► store ──► found
                                             │ missing
                                             ▼
                                     asker (a teacher's replica) ──► awaited when its step comes

The sequence of batches is known beforehand, so the labels of whole windows of steps are asked for
while the student computes the steps before them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from raybrew.data.encoding import EncodedView
from raybrew.data.payload import Payload, Signal
from raybrew.errors import LabelError, LabelsLost, TeacherDropped
from raybrew.labels.store import SignalStore

Answer = dict[str, Payload]


class Pending(Protocol):
    """An answer on its way."""

    def result(self) -> Answer:
        """Wait for it: by signal name, rows in the order of the question."""
        ...


class TeacherClient(Protocol):
    """Whoever can have a teacher compute labels."""

    def ask(self, teacher: str, view: EncodedView, signals: tuple[Signal, ...]) -> Pending:
        """Start computing; return at once."""
        ...

    def flush(self) -> None:
        """Have what was computed written to the store; return when it is."""
        ...


@dataclass(frozen=True)
class TeacherLabels:
    """What a rank needs to know to find a teacher's labels.

    Args:
        name: the teacher.
        task: index of its task in the batch sequence.
        view: the task's training examples as the teacher reads them.
        stores: by signal.
        supplied: whether they came with the data, so that nobody computes them.
    """

    name: str
    task: int
    view: EncodedView
    stores: Mapping[Signal, SignalStore]
    supplied: bool = False


@dataclass
class LabelCounts:
    """What became of a rank's questions, counted in (teacher, example).

    Args:
        hits: found in the store.
        misses: asked of a replica.
        dropped: of those, not to be had of a teacher that was dropped.
    """

    hits: int = 0
    misses: int = 0
    dropped: int = 0


@dataclass
class _Window:
    # By teacher: the steps in order with the rows of each, and what is known of them.
    parts: dict[str, "_Part"]
    ready: dict[int, dict[str, Answer]] | None = None


@dataclass
class _Part:
    steps: list[int]
    counts: list[int]
    found: np.ndarray
    known: Answer
    pending: Pending | None = None
    asked: np.ndarray | None = None


@dataclass
class LabelSource:
    """Serves the labels of each step of a rank.

    Args:
        teachers: all teachers of the job.
        asker: who computes what the store lacks; None if it has everything.
        rows_of: step -> (task, this rank's rows).
        num_steps: length of the run; nothing is asked beyond it.
        window: steps of one request.
        max_windows: requests in flight.
    """

    teachers: Sequence[TeacherLabels]
    asker: TeacherClient | None
    rows_of: Callable[[int], tuple[int, np.ndarray]]
    num_steps: int
    window: int = 8
    max_windows: int = 2
    figures: LabelCounts = field(default_factory=LabelCounts)
    _windows: dict[int, _Window] = field(default_factory=dict)
    _settled: int = 0

    def get(self, step: int) -> dict[str, Answer]:
        """Return the labels of a step.

        Args:
            step: steps must come in rising order.

        Returns:
            By teacher of the step's task, by signal name: a row for each of the rank's rows. A
            teacher is left out where labels of its window can't be had any longer, and its loss
            is to be gone on after (`on_loss: drop`).

        Raises:
            LabelsLost: labels are missing and no teacher was started who could compute them.
            LabelError: they came with the data, and are missing.
        """
        number = step // self.window
        for earlier in [n for n in self._windows if n < number]:
            del self._windows[earlier]
        for ahead in range(number, number + self.max_windows):
            if ahead not in self._windows and ahead * self.window < self.num_steps:
                self._windows[ahead] = self._request(ahead, step)
        current = self._windows[number]
        if current.ready is None:
            current.ready = self._await(current)
        return current.ready.pop(step, {})

    def settle(self) -> None:
        """Have the labels that were asked for written, so that from now on they are found."""
        if self.asker is not None and self.figures.misses > self._settled:
            self._settled = self.figures.misses
            self.asker.flush()

    def _request(self, number: int, first: int) -> _Window:
        first = max(first, number * self.window)
        steps = range(first, min((number + 1) * self.window, self.num_steps))
        rows = {step: self.rows_of(step) for step in steps}
        parts = {}
        for teacher in self.teachers:
            mine = [(step, r) for step, (task, r) in rows.items() if task == teacher.task]
            if mine:
                parts[teacher.name] = self._look_up(teacher, mine)
        return _Window(parts)

    def _look_up(self, teacher: TeacherLabels, mine: list[tuple[int, np.ndarray]]) -> _Part:
        rows = np.concatenate([r for _, r in mine])
        num_rows = len(rows)
        if not num_rows:
            # A rank without rows still needs labels of the right shape: none of one example's.
            rows = np.zeros(1, np.int64)
        keys = teacher.view.keys[rows]
        found, known = _read(teacher.stores, keys)
        if not found.all():
            for store in teacher.stores.values():
                store.refresh()
            found, known = _read(teacher.stores, keys)
        part = _Part([step for step, _ in mine], [len(r) for _, r in mine], found, known)
        self.figures.hits += int(found[:num_rows].sum())
        self.figures.misses += int((~found[:num_rows]).sum())
        if not found.all():
            if self.asker is None or teacher.supplied:
                kind = LabelError if teacher.supplied else LabelsLost
                raise kind(
                    f"teacher {teacher.name!r}: {int((~found).sum())} labels are missing from the "
                    "store and no teacher was started; were files of the store deleted?"
                )
            asked = teacher.view.take(rows[~found])
            part.asked = asked.keys
            part.pending = self.asker.ask(teacher.name, asked, tuple(teacher.stores))
        return part

    def _answer(self, name: str, part: _Part) -> Answer:
        """Return what the store had of a part, and what was computed."""
        if part.pending is None or part.asked is None:
            return part.known
        try:
            computed = part.pending.result()
        except LabelsLost:
            # The teacher has left, as all of its labels are there: also those that were on their
            # way when this rank looked?
            (stores,) = (teacher.stores for teacher in self.teachers if teacher.name == name)
            for store in stores.values():
                store.refresh(now=True)
            found, computed = _read(stores, part.asked)
            if not found.all():
                raise
        part.pending = None
        return _merged(part, computed)

    def _await(self, window: _Window) -> dict[int, dict[str, Answer]]:
        ready: dict[int, dict[str, Answer]] = {}
        for name, part in window.parts.items():
            try:
                answer = self._answer(name, part)
            except TeacherDropped:
                self.figures.dropped += int((~part.found[: sum(part.counts)]).sum())
                continue
            start = 0
            for step, count in zip(part.steps, part.counts, strict=True):
                rows = slice(start, start + count)
                ready.setdefault(step, {})[name] = {
                    signal: payload.slice(rows.start, rows.stop)
                    for signal, payload in answer.items()
                }
                start += count
        return ready


def _read(stores: Mapping[Signal, SignalStore], keys: np.ndarray) -> tuple[np.ndarray, Answer]:
    # A row counts as found when all of its signals are.
    read = {signal.name: store.read(keys) for signal, store in stores.items()}
    found = np.logical_and.reduce([each for each, _ in read.values()])
    return found, {
        name: payload.take(np.flatnonzero(found[each]))
        for name, (each, payload) in read.items()
        if payload is not None and found.any()
    }


def _merged(part: _Part, computed: Answer) -> Answer:
    if not part.known:
        return computed
    order = np.argsort(np.concatenate([np.flatnonzero(part.found), np.flatnonzero(~part.found)]))
    return {
        name: Payload.concat([part.known[name], payload]).take(order)
        for name, payload in computed.items()
    }
