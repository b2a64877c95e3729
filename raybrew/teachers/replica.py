"""A replica: answers from the store where it can, and runs the teacher otherwise.

    requests ──► keys known? ──► store
                    │ no             ▲
                    ▼                │ wait
                  leased? ──► by another process
                    │ now
                    ▼
                  sorted by length ──► forwards ──► append to the store ──► answers

The replica writes what it computes, so that any process finds it afterwards. The `router` gives a
key that two clients want at once to one replica, which takes its requests one after another: one
forward. Between pools, runs and processes the store's leases do the same (see `labels.leases`).
"""

import contextlib
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from raybrew.data.encoding import EncodedView, distinct_keys
from raybrew.data.payload import Payload, Signal
from raybrew.data.split import EncodedSplit, batches_by_length
from raybrew.errors import LabelError, RaybrewError
from raybrew.labels.leases import LEASES, Leases
from raybrew.labels.remote import StoreSpec
from raybrew.labels.store import LabelStore
from raybrew.models.devices import device_fault, free_cached_memory
from raybrew.models.pretrained import first_line
from raybrew.teachers.failure import ReplicaFailure
from raybrew.teachers.teacher import ModelTeacher, ResolvedTeacher

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 3
FLUSH_S = 10.0
"""Labels are written so long after the first that isn't: no more are lost with a replica."""
WAIT_S = 0.05
"""Time between two looks for labels that another process computes."""
METRICS = ("examples", "hits", "batches", "tokens", "padded_tokens", "compute_s", "payload_bytes")


@dataclass(frozen=True)
class Answer:
    """A replica's answer to a request for n examples.

    Args:
        payloads: by signal name, n rows in the order of the request; empty if the labels were
            only to be stored.
        computed: which rows cost a forward, bool (n,).
        left: rows that other processes compute, int64; none if the replica was to wait for them.
    """

    payloads: dict[str, Payload]
    computed: np.ndarray
    left: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @staticmethod
    def joined(answers: "Sequence[Answer]") -> "Answer":
        """Return the answer to several requests, one at least, one after another."""
        payloads = {
            name: Payload.concat([answer.payloads[name] for answer in answers])
            for name in answers[0].payloads
        }
        return Answer(payloads, np.concatenate([answer.computed for answer in answers]))

    def rows(self, start: int, stop: int) -> "Answer":
        """Return the answer to a part of the request."""
        payloads = {name: payload.slice(start, stop) for name, payload in self.payloads.items()}
        return Answer(payloads, self.computed[start:stop])


class _Answers(Protocol):
    def answer(self, view: EncodedView, signals: tuple[Signal, ...]) -> dict[str, Payload]: ...


class Replica:
    """Hosts a teacher. A plain class for one thread; `host` puts it behind a queue."""

    def __init__(
        self,
        spec: ResolvedTeacher,
        signals: tuple[Signal, ...],
        store: StoreSpec | str,
        teacher: _Answers | None = None,
    ):
        self.spec, self._signals = spec, signals
        self._teacher = teacher
        self.life = uuid.uuid4().hex
        self._failure: ReplicaFailure | None = None
        self._batch_tokens = spec.forward_tokens
        self._forward_size = (0, 0)  # examples and tokens of the last forward
        labels = LabelStore(store)
        self._stores = {s.name: labels.signal(spec.fingerprint, s) for s in signals}
        self._leases = Leases(labels.location.lease_folder(f"{spec.fingerprint}/{LEASES}"))
        self._metrics: dict[str, float] = dict.fromkeys(METRICS, 0.0)
        self._splits: dict[str, EncodedSplit] = {}
        self._forward_since: float | None = None
        self._waiting_since: float | None = None
        self._unwritten_since: float | None = None  # the first label that is not on disk
        self._most_rows: int | None = None

    def load(self) -> None:
        """Load the model now rather than at the first label that has to be computed."""
        with self._failing_for_good(alone=True):
            self._loaded()

    def unload(self) -> None:
        """Let the model go until it is needed again."""
        self._teacher = None
        free_cached_memory()

    def shrink(self, batch_tokens: int) -> None:
        """Have no forward of more tokens than these from now on; any thread may call it."""
        self._batch_tokens = min(self._batch_tokens, max(1, batch_tokens))

    def recover(self, batch_tokens: int) -> None:
        """Go on after memory was too small, in the same process, with smaller forwards."""
        self.shrink(batch_tokens)
        self._failure = None

    def ask(self, view: EncodedView, signals: tuple[Signal, ...]) -> Answer:
        """Return the labels of n examples, computing those that the store lacks.

        Args:
            view: the examples.
            signals: what is asked for, among the signals that the replica serves.

        Raises:
            TeacherError: the teacher gave an answer that can't be used.
            LabelError: labels vanish from the store as fast as they are written.
            ReplicaFailure: its device or its memory failed, now or before.
        """
        with self._failing_for_good(alone=True):
            return self._ask(view, signals)

    def _ask(self, view: EncodedView, signals: tuple[Signal, ...]) -> Answer:
        most = self._most_rows or max(1, len(view))
        starts = range(0, max(1, len(view)), most)
        parts = [view.take(np.arange(n, min(n + most, len(view)))) for n in starts]
        answers = [self._ask_at_once(part, signals) for part in parts]
        return answers[0] if len(answers) == 1 else Answer.joined(answers)

    def _ask_at_once(self, view: EncodedView, signals: tuple[Signal, ...]) -> Answer:
        computed = np.zeros(len(view), bool)
        for _ in range(_MAX_ATTEMPTS):
            computed |= self._compute_missing(view, signals)[0]
            answers = {s.name: self._stores[s.name].read(view.keys) for s in signals}
            # A shard that is found damaged now is set aside; its labels are missing then.
            if all(found.all() for found, _ in answers.values()):
                payloads = {n: p for n, (_, p) in answers.items() if p is not None}
                if self.wanted():
                    self.flush()
                return Answer(payloads, computed)
            if len(view) > 1 and any(store.unstored for store in self._stores.values()):
                # The store is full, and memory keeps fewer labels than these at once.
                self._most_rows = len(view) // 2
                answer = self._ask(view, signals)
                return Answer(answer.payloads, computed | answer.computed)
        raise LabelError(
            f"teacher {self.spec.name!r}: its labels vanished {_MAX_ATTEMPTS} times between being "
            "written and read; is something else deleting files in the store?"
        )

    def ask_together(
        self, views: Sequence[EncodedView], signals: tuple[Signal, ...]
    ) -> list[Answer | Exception]:
        """Answer several requests with common forwards.

        Returns:
            For each its answer, or the error that it alone ends in.

        Raises:
            ReplicaFailure: several of them failed together, as with `ask`.
        """
        if len(views) == 1:
            return [self._try_alone(view, signals) for view in views]
        try:
            with self._failing_for_good(alone=False):
                whole = self._ask(EncodedView.concat(views), signals)
        except ReplicaFailure:
            # This process can compute nothing after that; other replicas try each of them alone.
            raise
        except Exception:
            # Which of them is at fault shows when each is alone; what was computed is known now.
            return [self._try_alone(view, signals) for view in views]
        ends = np.cumsum([len(view) for view in views])
        return [whole.rows(end - len(view), end) for view, end in zip(views, ends, strict=True)]

    def fill(
        self, folder: str, view_name: str, rows: np.ndarray, *, patient: bool = True
    ) -> Answer:
        """Compute labels into the store without returning them.

        Args:
            folder: an encoded split, where this replica can read it.
            view_name: which of its views the teacher reads.
            rows: its rows, int64 (n,).
            patient: wait for labels that other processes compute.
        """
        if folder not in self._splits:
            self._splits[folder] = EncodedSplit.load(Path(folder))
        return self.fill_view(self._splits[folder].views[view_name].take(rows), patient=patient)

    def fill_view(self, view: EncodedView, *, patient: bool = True) -> Answer:
        """Compute labels of these examples into the store without returning them."""
        with self._failing_for_good(alone=True):
            if self._known(view.keys, self._signals).any():
                # The client has not found them: perhaps their files were deleted, and are mapped
                # here.
                self._refresh(self._signals, now=True)
            computed, left = self._compute_missing(view, self._signals, patient=patient)
            if self.wanted():
                self.flush()
            return Answer({}, computed, left)

    def flush(self) -> None:
        """Write what is not on disk yet."""
        for store in self._stores.values():
            store.flush()
        self._leases.release()
        self._unwritten_since = None

    def knows(self, keys: np.ndarray) -> np.ndarray:
        """Return which keys, uint64 (n, 2), have all labels that it serves, bool (n,)."""
        self._refresh(self._signals)
        return self._known(keys, self._signals)

    def flush_due(self) -> bool:
        """Return whether a flush is due, or another process waits for one; any thread may ask."""
        return self.unwritten_s() > FLUSH_S or self.wanted()

    def wanted(self) -> bool:
        """Return whether another process waits for a flush; any thread may ask."""
        return self._leases.wanted()

    def metrics(self) -> dict[str, float]:
        """Return what it has done since it started; any thread may ask.

        Returns:
            `examples`: forwards of single examples; `hits`: labels that were asked for and known;
            `batches`: forwards; `tokens`: real tokens that went through the teacher, and
            `padded_tokens` with padding; `compute_s`: time in the teacher, seconds;
            `payload_bytes`: bytes of labels that were computed; `unstored`: labels that a full
            store did not take.
        """
        unstored = sum(store.unstored for store in self._stores.values())
        return self._metrics | {"unstored": float(unstored)}

    def forward_s(self) -> float:
        """Return for how long the forward under way has run, 0 if there is none."""
        return _seconds_since(self._forward_since)

    def lease_wait_s(self) -> float:
        """Return for how long it has waited for labels that other processes compute."""
        return _seconds_since(self._waiting_since)

    def unwritten_s(self) -> float:
        """Return for how long a label has not been on disk; 0 if all of them are."""
        return _seconds_since(self._unwritten_since)

    def _try_alone(self, view: EncodedView, signals: tuple[Signal, ...]) -> Answer | Exception:
        try:
            return self.ask(view, signals)
        except Exception as error:
            return error

    @contextlib.contextmanager
    def _failing_for_good(self, *, alone: bool) -> Iterator[None]:
        """Make an error of the device or of memory the failure of this replica, for good.

        Args:
            alone: whether what is computed is for one request.
        """
        if self._failure is not None:
            # A context on a GPU that had an error gives nothing but errors, or worse. The request
            # that comes now is not to blame.
            fault, why, life, examples, tokens, _ = self._failure.args
            raise ReplicaFailure(fault, why, life, examples, tokens)
        try:
            yield
        except Exception as error:
            fault = device_fault(error)
            if fault is None:
                raise
            self._failure = ReplicaFailure(
                fault, first_line(error), self.life, *self._forward_size, alone
            )
            try:
                self.flush()
            except (RaybrewError, OSError, MemoryError) as unwritten:
                logger.warning("labels could not be written after a failure: %s", unwritten)
            raise self._failure from error

    def _compute_missing(
        self, view: EncodedView, signals: tuple[Signal, ...], *, patient: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Have all labels there; return which rows cost a forward, and which are left to others."""
        if self.flush_due():
            self.flush()
        computed = np.zeros(len(view), bool)
        rows, _ = distinct_keys(view.keys)
        rows = rows[~self._known(view.keys[rows], signals)]
        waiting = False
        try:
            while len(rows):
                taken = self._leases.acquire(view.keys[rows], waiting=waiting)
                if taken.mine.any():
                    self._unwritten_since = self._unwritten_since or time.monotonic()
                # A lease is given up after its label was written.
                self._refresh(signals, now=taken.released)
                known = self._known(view.keys[rows], signals)
                mine = rows[taken.mine & ~known]
                self._compute(view.take(mine), signals)
                computed[mine] = True
                rows = rows[~(taken.mine | known)]
                if not patient or not len(rows):
                    break
                # Two processes never wait for each other: what one has, it writes before.
                self.flush()
                self._waiting_since = self._waiting_since or time.monotonic()
                time.sleep(WAIT_S)
                waiting = True
        finally:
            self._waiting_since = None
        self._metrics["hits"] += len(view) - int(computed.sum()) - len(rows)
        return computed, rows

    def _compute(self, view: EncodedView, signals: tuple[Signal, ...]) -> None:
        if len(view):
            self._loaded()
        for rows in batches_by_length(view.lengths, max_tokens=self._batch_tokens):
            self._forward(view.take(rows), signals)

    def _forward(self, view: EncodedView, signals: tuple[Signal, ...]) -> None:
        self._forward_size = (len(view), len(view) * int(view.lengths.max()))
        start = self._forward_since = time.monotonic()
        try:
            payloads = self._loaded().answer(view, signals)
        finally:
            self._forward_since = None
        done = {
            "compute_s": time.monotonic() - start,
            "batches": 1,
            "examples": len(view),
            "tokens": int(view.lengths.sum()),
            "padded_tokens": self._forward_size[1],
            "payload_bytes": sum(payload.nbytes for payload in payloads.values()),
        }
        for name, value in done.items():
            self._metrics[name] += value
        for name, payload in payloads.items():
            # One signal of an example may be there already while another isn't.
            new = np.flatnonzero(~self._stores[name].contains(view.keys))
            self._stores[name].append(view.keys[new], payload.take(new))

    def _loaded(self) -> _Answers:
        if self._teacher is None:
            self._forward_size = (0, 0)
            self._teacher = ModelTeacher(self.spec)
        return self._teacher

    def _known(self, keys: np.ndarray, signals: tuple[Signal, ...]) -> np.ndarray:
        return np.logical_and.reduce([self._stores[s.name].contains(keys) for s in signals])

    def _refresh(self, signals: tuple[Signal, ...], *, now: bool = False) -> None:
        # Another process may have written labels since.
        for signal in signals:
            self._stores[signal.name].refresh(now=now)


def _seconds_since(moment: float | None) -> float:
    return 0.0 if moment is None else time.monotonic() - moment
