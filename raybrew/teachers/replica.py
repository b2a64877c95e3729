"""One replica of a teacher: answers from the store where it can, and runs the teacher otherwise.

    questions ──► keys known? ──► store
                    │ no             ▲
                    ▼                │ wait
                  claimed? ──► by another process
                    │ now
                    ▼
                  sorted by length ──► forwards ──► append to the store ──► answers

The replica writes what it computes, so that whoever asks next, in whatever process, finds it.
Who holds which key is the `router`'s to say: a key that two askers want at once comes to one
replica, which takes its questions one after another. That makes them cost one forward. Between
pools, runs and processes the store's claims say the same (see `labels.claims`).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np

from raybrew.data.encoding import EncodedView
from raybrew.data.keys import distinct_keys
from raybrew.data.split import EncodedSplit
from raybrew.errors import LabelError, RaybrewError
from raybrew.labels.claims import CLAIMS, Claims
from raybrew.labels.payload import Payload, Signal
from raybrew.labels.spec import StoreSpec
from raybrew.labels.store import LabelStore, SignalStore
from raybrew.teachers.answer import Answer, ReplicaFigures
from raybrew.teachers.teacher import ModelTeacher, TeacherSpec, chunks_by_tokens

__all__ = ["Replica"]

_MAX_ATTEMPTS = 3
FLUSH_S = 10.0
"""Labels are written so long after the first that isn't: no more is lost with a replica."""
WAIT_S = 0.05
"""How often is looked for labels that another process is at."""


class _Answers(Protocol):
    def answer(self, view: EncodedView, signals: tuple[Signal, ...]) -> dict[str, Payload]: ...


class Replica:
    """Hosts a teacher. A plain class for one thread; `host` puts it behind a queue."""

    def __init__(
        self,
        spec: TeacherSpec,
        signals: tuple[Signal, ...],
        store: StoreSpec | str,
        teacher: _Answers | None = None,
        on_flush: Callable[[], None] = lambda: None,
    ):
        self.spec, self._signals = spec, signals
        self._teacher = teacher
        labels = LabelStore(store)
        self._stores = {s.name: labels.signal(spec.fingerprint, s) for s in signals}
        self._claims = Claims(labels.location.beside(f"{spec.fingerprint}/{CLAIMS}"))
        self._figures = ReplicaFigures()
        self._splits: dict[str, EncodedSplit] = {}
        self._forward_since: float | None = None
        self._waiting_since: float | None = None
        self._held_since: float | None = None  # the first label that is not on disk
        self._most_rows: int | None = None
        self._on_flush = on_flush

    def load(self) -> None:
        """Load the model now rather than at the first label that has to be computed."""
        self._loaded()

    def unload(self) -> None:
        """Let the model go until it is needed again."""
        self._teacher = None

    def ask(self, view: EncodedView, signals: tuple[Signal, ...]) -> Answer:
        """Return the labels of n examples, computing those that nobody has computed before.

        Args:
            view: the examples.
            signals: what is asked for, among the signals that the replica serves.

        Raises:
            TeacherError: the teacher gave an answer that can't be used.
            LabelError: labels vanish from the store as fast as they are written.
        """
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
                self._flush_if_wanted()
                return Answer(payloads, computed)
            if len(view) > 1 and any(store.unstored for store in self._stores.values()):
                # The store has no room, and memory keeps fewer labels than these at once.
                self._most_rows = len(view) // 2
                answer = self.ask(view, signals)
                return Answer(answer.payloads, computed | answer.computed)
        raise LabelError(
            f"teacher {self.spec.name!r}: its labels vanished {_MAX_ATTEMPTS} times between being "
            "written and read; is something else deleting files in the store?"
        )

    def ask_together(
        self, views: Sequence[EncodedView], signals: tuple[Signal, ...]
    ) -> list[Answer | RaybrewError]:
        """Answer several questions with common forwards.

        Returns:
            For each its answer, or the error that it alone ends in.
        """
        if len(views) > 1:
            try:
                whole = self.ask(EncodedView.concat(views), signals)
            except RaybrewError:
                # Whose fault it is shows when each stands alone; what was computed is known now.
                return [self._tried(view, signals) for view in views]
            ends = np.cumsum([len(view) for view in views])
            return [whole.rows(end - len(view), end) for view, end in zip(views, ends, strict=True)]
        return [self._tried(view, signals) for view in views]

    def fill(
        self, folder: str, view_name: str, rows: np.ndarray, *, patient: bool = True
    ) -> Answer:
        """Compute labels into the store without returning them.

        Args:
            folder: an encoded split, where this replica can read it.
            view_name: which of its views the teacher reads.
            rows: its rows, int64 (n,).
            patient: wait for labels that other processes are at.
        """
        if folder not in self._splits:
            self._splits[folder] = EncodedSplit.load(Path(folder))
        return self.fill_view(self._splits[folder].views[view_name].take(rows), patient=patient)

    def fill_view(self, view: EncodedView, *, patient: bool = True) -> Answer:
        """Compute labels of these examples into the store without returning them."""
        if self._here(view.keys, self._signals).any():
            # Who asks has not found them: perhaps their files were deleted, and are mapped here.
            self._known(view.keys, self._signals, now=True)
        computed, left = self._compute_missing(view, self._signals, patient=patient)
        self._flush_if_wanted()
        return Answer({}, computed, left)

    def flush(self) -> None:
        """Write what is not on disk yet."""
        for store in self._stores.values():
            store.flush()
        self._claims.release()
        self._held_since = None
        self._on_flush()

    def flush_due(self) -> bool:
        """Return whether a flush is due, or another process waits for one; any thread may ask."""
        since = self._held_since
        return (since is not None and time.monotonic() - since > FLUSH_S) or self.wanted()

    def wanted(self) -> bool:
        """Return whether another process waits for a flush; any thread may ask."""
        return self._claims.wanted()

    def figures(self) -> dict[str, float]:
        """Return `ReplicaFigures` as values, and the labels that there was no room for.

        May be called from another thread.
        """
        unstored = sum(store.unstored for store in self._stores.values())
        return asdict(self._figures) | {"unstored": float(unstored)}

    def forward_s(self) -> float:
        """Return for how long the forward under way has run, 0 if there is none."""
        since = self._forward_since
        return 0.0 if since is None else time.monotonic() - since

    def others_s(self) -> float:
        """Return for how long it has waited for labels that other processes are at."""
        since = self._waiting_since
        return 0.0 if since is None else time.monotonic() - since

    def _tried(self, view: EncodedView, signals: tuple[Signal, ...]) -> Answer | RaybrewError:
        try:
            return self.ask(view, signals)
        except RaybrewError as error:
            return error

    def _compute_missing(
        self, view: EncodedView, signals: tuple[Signal, ...], *, patient: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Have all labels there; return which rows cost a forward, and which are left to others."""
        if self.flush_due():
            # Not after an answer, where it can wait: a replica that died in between could never
            # say who computed them.
            self.flush()
        computed = np.zeros(len(view), bool)
        rows, _ = distinct_keys(view.keys)
        rows = rows[~self._here(view.keys[rows], signals)]
        waiting = False
        try:
            while len(rows):
                taken = self._claims.take(view.keys[rows], waiting=waiting)
                if taken.mine.any():
                    self._held_since = self._held_since or time.monotonic()
                # Whoever let go of a key has written its label before.
                known = self._known(view.keys[rows], signals, now=taken.moved)
                mine = rows[taken.mine & ~known]
                self._compute(view, mine, signals)
                computed[mine] = True
                rows = rows[~(taken.mine | known)]
                if not patient or not len(rows):
                    break
                # Nobody waits who has what somebody else may wait for.
                self.flush()
                self._waiting_since = self._waiting_since or time.monotonic()
                time.sleep(WAIT_S)
                waiting = True
        finally:
            self._waiting_since = None
        self._figures.hits += int(len(view) - computed.sum() - len(rows))
        return computed, rows

    def _compute(self, view: EncodedView, rows: np.ndarray, signals: tuple[Signal, ...]) -> None:
        if len(rows):
            self._loaded()
            for chunk in chunks_by_tokens(view.lengths_of(rows), self.spec.batch_tokens):
                self._forward(view.take(rows[chunk]), signals)

    def _forward(self, asked: EncodedView, signals: tuple[Signal, ...]) -> None:
        start = self._forward_since = time.monotonic()
        try:
            answers = self._loaded().answer(asked, signals)
        finally:
            self._forward_since = None
        self._count(asked, time.monotonic() - start)
        for signal in signals:
            self._keep(self._stores[signal.name], asked.keys, answers[signal.name])

    def _count(self, asked: EncodedView, seconds: float) -> None:
        figures = self._figures
        figures.compute_s += seconds
        figures.batches += 1
        figures.examples += len(asked)
        figures.tokens += int(asked.lengths.sum())
        figures.padded_tokens += len(asked) * int(asked.lengths.max())

    def _flush_if_wanted(self) -> None:
        if self.wanted():
            self.flush()

    def _loaded(self) -> _Answers:
        if self._teacher is None:
            self._teacher = ModelTeacher(self.spec)
        return self._teacher

    def _keep(self, store: SignalStore, keys: np.ndarray, payload: Payload) -> None:
        self._figures.payload_bytes += payload.nbytes
        # A signal may be there already while its sister isn't.
        new = np.flatnonzero(~store.contains(keys))
        store.append(keys[new], payload.take(new))

    def _here(self, keys: np.ndarray, signals: tuple[Signal, ...]) -> np.ndarray:
        stores = [self._stores[signal.name] for signal in signals]
        return np.logical_and.reduce([store.contains(keys) for store in stores])

    def _known(self, keys: np.ndarray, signals: tuple[Signal, ...], *, now: bool) -> np.ndarray:
        # Somebody else may have written them since.
        for signal in signals:
            self._stores[signal.name].refresh(now=now)
        return self._here(keys, signals)
