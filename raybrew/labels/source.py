"""Soft labels for a rank, in the order of its steps, requested before they are needed.

    steps of the next windows ──► keys ──► store ──► found
                                             │ missing
                                             ▼
                                     TeacherClient (a teacher's replica) ──► awaited at its step

The sequence of batches is known in advance, so the labels of whole windows of steps are requested
while the student computes the steps before them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raybrew.data.encoding import EncodedView
from raybrew.data.payload import Payload, Signal
from raybrew.errors import LabelError, LabelsLost, TeacherDropped
from raybrew.labels.store import SignalStore

Labels = dict[str, Payload]
"""Labels of the same examples, by signal name."""


class Pending(Protocol):
    """Labels that are being computed."""

    def result(self) -> Labels:
        """Wait for them; the rows are in the order of the request."""
        ...


class TeacherClient(Protocol):
    """Has teachers compute labels."""

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
        supplied: whether they came with the data, so that they can't be computed.
    """

    name: str
    task: int
    view: EncodedView
    stores: Mapping[Signal, SignalStore]
    supplied: bool = False

    def refresh(self, *, now: bool = False) -> None:
        """See labels that other processes have written; see `SignalStore.refresh`."""
        for store in self.stores.values():
            store.refresh(now=now)

    def read(self, keys: np.ndarray) -> tuple[np.ndarray, Labels]:
        """Read labels, also those that other processes have written.

        Args:
            keys: uint64 (n, 2).

        Returns:
            Which keys have the labels of all signals, bool (n,), and their labels.
        """
        found, labels = self._read(keys)
        if not found.all():
            self.refresh()
            found, labels = self._read(keys)
        return found, labels

    def _read(self, keys: np.ndarray) -> tuple[np.ndarray, Labels]:
        read = {signal.name: store.read(keys) for signal, store in self.stores.items()}
        found = np.logical_and.reduce([each for each, _ in read.values()])
        return found, {
            name: payload.take(np.flatnonzero(found[each]))
            for name, (each, payload) in read.items()
            if payload is not None and found.any()
        }


@dataclass
class _Request:
    """The labels of one teacher for a window of steps."""

    teacher: TeacherLabels
    rows: dict[int, int]  # how many each step has
    found: np.ndarray
    known: Labels
    keys: np.ndarray | None = None  # those that were requested
    pending: Pending | None = None

    def result(self) -> Labels:
        """Return the labels of all rows, in order."""
        if self.pending is None or self.keys is None:
            return self.known
        try:
            computed = self.pending.result()
        except LabelsLost:
            # The teacher has left because all of its labels are in the store. These, too?
            self.teacher.refresh(now=True)
            found, computed = self.teacher.read(self.keys)
            if not found.all():
                raise
        if not self.known:
            return computed
        places = np.concatenate([np.flatnonzero(self.found), np.flatnonzero(~self.found)])
        order = np.argsort(places)
        return {
            name: Payload.concat([self.known[name], payload]).take(order)
            for name, payload in computed.items()
        }


class LabelSource:
    """Serves the labels of each step of a rank.

    Args:
        teachers: all teachers of the job.
        client: has labels computed that the store lacks; None if it has every label.
        rows_of: step -> (task, this rank's rows).
        num_steps: length of the run; nothing is requested beyond it.
        window: steps of one request.
        max_windows: requests in flight.

    Attributes:
        counts: what became of the rank's requests, in (teacher, example): `hits` were found in the
            store, `misses` requested from a teacher, and of those `dropped` never computed, as the
            teacher was dropped.
    """

    def __init__(
        self,
        teachers: Sequence[TeacherLabels],
        client: TeacherClient | None,
        rows_of: Callable[[int], tuple[int, np.ndarray]],
        num_steps: int,
        window: int = 8,
        max_windows: int = 2,
    ):
        self.teachers, self._client, self._rows_of = teachers, client, rows_of
        self._num_steps, self._window, self._max_windows = num_steps, window, max_windows
        self.counts = {"hits": 0, "misses": 0, "dropped": 0}
        self._requests: dict[int, list[_Request]] = {}
        # The window that is being read, and its labels by step and teacher.
        self._current = -1
        self._ready: dict[int, dict[str, Labels]] = {}
        self._settled = 0

    def get(self, step: int) -> dict[str, Labels]:
        """Return the labels of a step.

        Args:
            step: steps must come in rising order.

        Returns:
            By teacher of the step's task, by signal name: a row for each of the rank's rows. A
            dropped teacher (`on_loss: drop`) is left out where labels of its window are missing.

        Raises:
            LabelsLost: labels are missing and no teacher was started that could compute them.
            LabelError: they came with the data, and are missing.
        """
        number = step // self._window
        for earlier in [n for n in self._requests if n < number]:
            del self._requests[earlier]
        for window in range(number, number + self._max_windows):
            if window not in self._requests and window * self._window < self._num_steps:
                self._requests[window] = self._request(window, step)
        if self._current != number:
            self._ready = self._await(self._requests[number])
            self._current = number
        return self._ready.pop(step, {})

    def settle(self) -> None:
        """Have requested labels written, so that from now on they are found in the store."""
        if self._client is not None and self.counts["misses"] > self._settled:
            self._settled = self.counts["misses"]
            self._client.flush()

    def _request(self, window: int, first: int) -> list[_Request]:
        first = max(first, window * self._window)
        steps = range(first, min((window + 1) * self._window, self._num_steps))
        batches = {step: self._rows_of(step) for step in steps}
        requests = []
        for teacher in self.teachers:
            rows = {step: r for step, (task, r) in batches.items() if task == teacher.task}
            if rows:
                requests.append(self._request_of(teacher, rows))
        return requests

    def _request_of(self, teacher: TeacherLabels, rows_by_step: dict[int, np.ndarray]) -> _Request:
        rows = np.concatenate(list(rows_by_step.values()))
        num_rows = len(rows)
        if not num_rows:
            # A rank without rows still needs labels of the right shape: none of one example's.
            rows = np.zeros(1, np.int64)
        found, known = teacher.read(teacher.view.keys[rows])
        counts = {step: len(each) for step, each in rows_by_step.items()}
        request = _Request(teacher, counts, found, known)
        self.counts["hits"] += int(found[:num_rows].sum())
        self.counts["misses"] += int((~found[:num_rows]).sum())
        if found.all():
            return request
        if self._client is None or teacher.supplied:
            error_type = LabelError if teacher.supplied else LabelsLost
            raise error_type(
                f"teacher {teacher.name!r}: {int((~found).sum())} labels are missing from the "
                "store and no teacher was started; were files of the store deleted?"
            )
        missing = teacher.view.take(rows[~found])
        request.keys = missing.keys
        request.pending = self._client.ask(teacher.name, missing, tuple(teacher.stores))
        return request

    def _await(self, requests: Sequence[_Request]) -> dict[int, dict[str, Labels]]:
        ready: dict[int, dict[str, Labels]] = {}
        for request in requests:
            try:
                labels = request.result()
            except TeacherDropped:
                self.counts["dropped"] += int((~request.found[: sum(request.rows.values())]).sum())
                continue
            start = 0
            for step, count in request.rows.items():
                ready.setdefault(step, {})[request.teacher.name] = {
                    signal: payload.slice(start, start + count)
                    for signal, payload in labels.items()
                }
                start += count
        return ready
