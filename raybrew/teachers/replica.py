"""One replica of a teacher: answers from the store where it can, and runs the teacher otherwise.

    question ──► keys known? ──► store
                    │ no
                    ▼
                 teacher ──► append to the store ──► answer

The replica writes what it computes, so that whoever asks next, in whatever process, finds it.
All questions with one key go to one replica (see `client`), which takes them one after another:
that makes two askers of one label cost one forward, without a lock.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from raybrew.data.encoding import EncodedSplit, EncodedView
from raybrew.errors import LabelError
from raybrew.labels.payload import Payload, Signal
from raybrew.labels.spec import StoreSpec
from raybrew.labels.store import LabelStore, SignalStore
from raybrew.teachers.teacher import ModelTeacher, TeacherSpec

__all__ = ["Replica", "ReplicaFigures"]

_MAX_ATTEMPTS = 3


@dataclass
class ReplicaFigures:
    """What a replica has done since it started.

    Args:
        examples: forwards of single examples.
        hits: labels that were asked for and already known.
        tokens: real tokens that went through the teacher.
        compute_s: time in the teacher, seconds.
        payload_bytes: bytes of labels that were computed.
    """

    examples: int = 0
    hits: int = 0
    tokens: int = 0
    compute_s: float = 0.0
    payload_bytes: int = 0


class _Answers(Protocol):
    def answer(self, view: EncodedView, signals: tuple[Signal, ...]) -> dict[str, Payload]: ...


class Replica:
    """Hosts a teacher. A plain class; `pool` wraps it in an actor."""

    def __init__(
        self,
        spec: TeacherSpec,
        signals: tuple[Signal, ...],
        store: StoreSpec | str,
        teacher: _Answers | None = None,
    ):
        self.spec, self._signals = spec, signals
        self._teacher = teacher
        labels = LabelStore(store)
        self._stores = {s.name: labels.signal(spec.fingerprint, s) for s in signals}
        self._figures = ReplicaFigures()
        self._splits: dict[str, EncodedSplit] = {}

    def load(self) -> None:
        """Load the model now rather than at the first label that has to be computed."""
        self._loaded()

    def ask(self, view: EncodedView, signals: tuple[Signal, ...]) -> dict[str, Payload]:
        """Return the labels of n examples, computing those that nobody has computed before.

        Args:
            view: the examples.
            signals: what is asked for, among the signals that the replica serves.

        Returns:
            By signal name, n rows in the order of `view`.

        Raises:
            TeacherError: the teacher gave an answer that can't be used.
            LabelError: labels vanish from the store as fast as they are written.
        """
        for _ in range(_MAX_ATTEMPTS):
            self._compute_missing(view, signals)
            answers = {s.name: self._stores[s.name].read(view.keys) for s in signals}
            # A shard that is found damaged now is set aside; its labels are missing then.
            if all(found.all() for found, _ in answers.values()):
                return {n: payload for n, (_, payload) in answers.items() if payload is not None}
        raise LabelError(
            f"teacher {self.spec.name!r}: its labels vanished {_MAX_ATTEMPTS} times between being "
            "written and read; is something else deleting files in the store?"
        )

    def fill(self, folder: str, view_name: str, rows: np.ndarray) -> int:
        """Compute labels into the store without returning them.

        Args:
            folder: an encoded split, where this replica can read it.
            view_name: which of its views the teacher reads.
            rows: its rows, int64 (n,).

        Returns:
            Examples that had to be computed.
        """
        if folder not in self._splits:
            self._splits[folder] = EncodedSplit.load(Path(folder))
        view = self._splits[folder].views[view_name].take(rows)
        return self._compute_missing(view, self._signals)

    def flush(self) -> None:
        """Write what is not on disk yet."""
        for store in self._stores.values():
            store.flush()

    def figures(self) -> dict[str, float]:
        """Return `ReplicaFigures` as values, and the labels that there was no room for."""
        unstored = sum(store.unstored for store in self._stores.values())
        return asdict(self._figures) | {"unstored": float(unstored)}

    def _compute_missing(self, view: EncodedView, signals: tuple[Signal, ...]) -> int:
        _, first = np.unique(view.keys, axis=0, return_index=True)
        missing = np.zeros(len(view), bool)
        missing[first] = ~self._known(view.keys[first], signals)
        self._figures.hits += int(len(view) - missing.sum())
        rows = np.flatnonzero(missing)
        if not len(rows):
            return 0
        asked = view.take(rows)
        teacher = self._loaded()
        start = time.perf_counter()
        answers = teacher.answer(asked, signals)
        self._figures.compute_s += time.perf_counter() - start
        self._figures.examples += len(asked)
        self._figures.tokens += int(asked.lengths.sum())
        for signal in signals:
            self._keep(self._stores[signal.name], asked.keys, answers[signal.name])
        return len(asked)

    def _loaded(self) -> _Answers:
        if self._teacher is None:
            self._teacher = ModelTeacher(self.spec)
        return self._teacher

    def _keep(self, store: SignalStore, keys: np.ndarray, payload: Payload) -> None:
        self._figures.payload_bytes += payload.nbytes
        # A signal may be there already while its sister isn't.
        new = np.flatnonzero(~store.contains(keys))
        store.append(keys[new], payload.take(new))

    def _known(self, keys: np.ndarray, signals: tuple[Signal, ...]) -> np.ndarray:
        stores = [self._stores[signal.name] for signal in signals]
        known = np.logical_and.reduce([store.contains(keys) for store in stores])
        if known.all():
            return known
        # Somebody else may have written them since.
        for store in stores:
            store.refresh()
        return np.logical_and.reduce([store.contains(keys) for store in stores])
