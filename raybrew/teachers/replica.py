"""A replica: one copy of a teacher that answers requests, and what it answers."""

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from raybrew.data.encoding import EncodedView, distinct_keys
from raybrew.data.payload import Payload, Signal
from raybrew.data.split import EncodedSplit
from raybrew.errors import LabelError, RaybrewError
from raybrew.labels.leases import LEASES, Leases
from raybrew.labels.remote import StoreSpec
from raybrew.labels.store import LabelStore, SignalStore
from raybrew.models.devices import device_fault, free_cached_memory
from raybrew.models.pretrained import first_line
from raybrew.teachers.failure import ReplicaFailure
from raybrew.teachers.teacher import ModelTeacher, ResolvedTeacher, batches_by_length

# What a replica answers, and what it says of itself.


@dataclass(frozen=True)
class Answer:
    """A replica's answer to a question of n examples.

    Args:
        payloads: by signal name, n rows in the order of the question; empty if nothing but the
            filling of the store was asked for.
        computed: which rows cost a forward, bool (n,).
        left: rows that other processes are at, int64; none unless nobody was to wait for them.
    """

    payloads: dict[str, Payload]
    computed: np.ndarray
    left: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @staticmethod
    def joined(answers: "Sequence[Answer]") -> "Answer":
        """Return the answer to the questions one after another, of which there is one at least."""
        payloads = {
            name: Payload.concat([answer.payloads[name] for answer in answers])
            for name in answers[0].payloads
        }
        return Answer(payloads, np.concatenate([answer.computed for answer in answers]))

    def rows(self, start: int, stop: int) -> "Answer":
        """Return the answer to a part of the question."""
        payloads = {name: payload.slice(start, stop) for name, payload in self.payloads.items()}
        return Answer(payloads, self.computed[start:stop])


@dataclass
class ReplicaMetrics:
    """What a replica has done since it started.

    Args:
        examples: forwards of single examples.
        hits: labels that were asked for and already known.
        batches: forwards.
        tokens: real tokens that went through the teacher.
        padded_tokens: the same with padding.
        compute_s: time in the teacher, seconds.
        payload_bytes: bytes of labels that were computed.
    """

    examples: int = 0
    hits: int = 0
    batches: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    compute_s: float = 0.0
    payload_bytes: int = 0


# One replica of a teacher: answers from the store where it can, and runs the teacher otherwise.
#
#     questions ──► keys known? ──► store
#                     │ no             ▲
#                     ▼                │ wait
#                   claimed? ──► by another process
#                     │ now
#                     ▼
#                   sorted by length ──► forwards ──► append to the store ──► answers
#
# The replica writes what it computes, so that whoever asks next, in whatever process, finds it.
# Who holds which key is the `router`'s to say: a key that two askers want at once comes to one
# replica, which takes its questions one after another. That makes them cost one forward. Between
# pools, runs and processes the store's claims say the same (see `labels.claims`).

logger = logging.getLogger(__name__)

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
        spec: ResolvedTeacher,
        signals: tuple[Signal, ...],
        store: StoreSpec | str,
        teacher: _Answers | None = None,
        on_flush: Callable[[], None] = lambda: None,
    ):
        self.spec, self._signals = spec, signals
        self._teacher = teacher
        self.life = uuid.uuid4().hex
        self._failure: ReplicaFailure | None = None
        self._batch_tokens = spec.forward_tokens
        self._forward_size = (0, 0)  # examples and tokens of the last forward
        labels = LabelStore(store)
        self._stores = {s.name: labels.signal(spec.fingerprint, s) for s in signals}
        self._claims = Leases(labels.location.beside(f"{spec.fingerprint}/{LEASES}"))
        self._figures = ReplicaMetrics()
        self._splits: dict[str, EncodedSplit] = {}
        self._forward_since: float | None = None
        self._waiting_since: float | None = None
        self._held_since: float | None = None  # the first label that is not on disk
        self._most_rows: int | None = None
        self._on_flush = on_flush

    def load(self) -> None:
        """Load the model now rather than at the first label that has to be computed."""
        with self._device_watched(alone=True):
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
        """Return the labels of n examples, computing those that nobody has computed before.

        Args:
            view: the examples.
            signals: what is asked for, among the signals that the replica serves.

        Raises:
            TeacherError: the teacher gave an answer that can't be used.
            LabelError: labels vanish from the store as fast as they are written.
            ReplicaFailure: its device or its memory failed, now or before.
        """
        with self._device_watched(alone=True):
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
                self._flush_if_wanted()
                return Answer(payloads, computed)
            if len(view) > 1 and any(store.unstored for store in self._stores.values()):
                # The store has no room, and memory keeps fewer labels than these at once.
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
        """Answer several questions with common forwards.

        Returns:
            For each its answer, or the error that it alone ends in.

        Raises:
            ReplicaFailure: several of them failed together, as with `ask`.
        """
        if len(views) > 1:
            try:
                with self._device_watched(alone=False):
                    whole = self._ask(EncodedView.concat(views), signals)
            except ReplicaFailure:
                # What failed is no good for a second try, here; elsewhere each will stand alone.
                raise
            except Exception:
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
        with self._device_watched(alone=True):
            if self._here(view.keys, self._signals).any():
                # Who asks has not found them: perhaps their files were deleted, and are mapped
                # here.
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

    def knows(self, keys: np.ndarray) -> np.ndarray:
        """Return which keys, uint64 (n, 2), have all labels that it serves, bool (n,)."""
        return self._known(keys, self._signals, now=False)

    def flush_due(self) -> bool:
        """Return whether a flush is due, or another process waits for one; any thread may ask."""
        since = self._held_since
        return (since is not None and time.monotonic() - since > FLUSH_S) or self.wanted()

    def wanted(self) -> bool:
        """Return whether another process waits for a flush; any thread may ask."""
        return self._claims.wanted()

    def figures(self) -> dict[str, float]:
        """Return `ReplicaMetrics` as values, and the labels that there was no room for.

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

    def _tried(self, view: EncodedView, signals: tuple[Signal, ...]) -> Answer | Exception:
        try:
            return self.ask(view, signals)
        except Exception as error:
            return error

    @contextlib.contextmanager
    def _device_watched(self, *, alone: bool) -> Iterator[None]:
        """Make an error of the device or of memory the failure of this replica, for good.

        Args:
            alone: whether what is computed is for one request.
        """
        if self._failure is not None:
            # A context on a GPU that had an error gives nothing but errors, or worse. Whoever asks
            # now is not to blame for it.
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
            self._save()
            raise self._failure from error

    def _save(self) -> None:
        try:
            self.flush()
        except (RaybrewError, OSError, MemoryError) as error:
            logger.warning("labels could not be written after a failure: %s", error)

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
            for chunk in batches_by_length(view.lengths_of(rows), self._batch_tokens):
                self._forward(view.take(rows[chunk]), signals)

    def _forward(self, asked: EncodedView, signals: tuple[Signal, ...]) -> None:
        self._forward_size = (len(asked), len(asked) * int(asked.lengths.max()))
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
            self._forward_size = (0, 0)
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
