"""A teacher whose answers are kept: each example is computed once, in whatever order it comes.

    question ──► content keys ──► store ──► found
                                    └─► missing ──► teacher ──► appended

The store is the package's own. A label is found by the content of its example and by the teacher's
fingerprint, so it serves every epoch, shuffled or not, every task, and every later run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from raybrew.data.encoding import distinct_keys
from raybrew.data.payload import Payload, Signal, to_storage
from raybrew.errors import TeacherError
from raybrew.labels.logits import as_ragged, tensors_of
from raybrew.labels.store import LabelStore, SignalStore
from raybrew.losses.match_loss import FeatureSizes, MatchLoss, Ragged
from raybrew.matches.capture import signal_of
from raybrew.matches.spec import MatchSpec
from raybrew.tasks.adaptors import View
from raybrew.textbrewer.content import content_keys
from raybrew.textbrewer.teacher import Answer, Question, Teacher

DTYPE = "float32"
"""As the teacher says it: keeping labels changes no loss."""


@dataclass
class KeptTeacher:
    """Answers from the store, and asks the teacher for what it lacks.

    Args:
        teacher: who computes.
        store: of the labels.
        fingerprint: what they are filed under.

    Attributes:
        hits: answers that were found.
    """

    teacher: Teacher
    store: LabelStore
    fingerprint: str
    hits: int = field(default=0, init=False)
    _open: dict[str, SignalStore] = field(default_factory=dict, init=False)

    def ask(self, question: Question) -> Answer:
        """Answer; see `Teacher.ask`.

        Raises:
            TeacherError: answers of another size than the student's.
            LabelError: a label that can't be read or written.
        """
        signals = self._signals(len(question.student.logits))
        if not signals:
            return Answer((), (), ())
        if question.cache is not None:
            return self.teacher.ask(question)
        keys = content_keys(question.batch, question.size, question.real)
        # Labels made with the padding are not those made without.
        keys = keys ^ np.uint64(0 if question.real is None else 1)
        stores = [self._store(signal) for signal in signals]
        found = np.logical_and.reduce([store.contains(keys) for store in stores])
        self.hits += int(found.sum())
        if not found.all():
            self._compute(question, keys, np.flatnonzero(~found), signals)
        return self._answer(question, [_all_of(store, keys) for store in stores], signals)

    def flush(self) -> None:
        """Write what is not on disk yet."""
        for store in self._open.values():
            store.flush()

    def _signals(self, num_logits: int) -> list[Signal]:
        logits = [Signal(f"logits.{number}", dtype=DTYPE) for number in range(num_logits)]
        return logits + [signal_of(spec, DTYPE) for spec in self.teacher.matches]

    def _store(self, signal: Signal) -> SignalStore:
        if signal.name not in self._open:
            self._open[signal.name] = self.store.signal(self.fingerprint, signal)
        return self._open[signal.name]

    def _compute(
        self, question: Question, keys: np.ndarray, missing: np.ndarray, signals: Sequence[Signal]
    ) -> None:
        # Equal examples of a batch are computed once.
        first, _ = distinct_keys(keys[missing])
        rows = missing[first]
        part = question.take(torch.from_numpy(rows))
        answer = self.teacher.ask(part)
        mask = None if part.real is None else _mask_of(answer, part)
        payloads = [
            _of_rows(logits, counts)
            for logits, counts in zip(answer.logits, answer.counts, strict=True)
        ]
        payloads += [
            _of_statistic(spec, statistic, mask)
            for spec, statistic in zip(self.teacher.matches, answer.statistics, strict=True)
        ]
        for signal, payload in dict(zip(signals, payloads, strict=True)).items():
            store = self._store(signal)
            new = np.flatnonzero(~store.contains(keys[rows]))
            store.append(keys[rows][new], payload.take(new))

    def _answer(
        self, question: Question, payloads: Sequence[Payload], signals: Sequence[Signal]
    ) -> Answer:
        num_logits, device = len(question.student.logits), self.teacher.device
        logits, counts = [], []
        for payload, signal, own in zip(payloads, signals, question.student.logits, strict=False):
            width = own.shape[-1]
            values = as_ragged(tensors_of(payload, signal))
            counts.append(np.asarray(values.offsets.diff()) // width)
            self._check(values, width)
            logits.append(values.values.view(-1, width).to(device))
        statistics = [
            _unpacked(spec, as_ragged(tensors_of(payload, signal)), question, device)
            for spec, payload, signal in zip(
                self.teacher.matches, payloads[num_logits:], signals[num_logits:], strict=True
            )
        ]
        return Answer(tuple(logits), tuple(counts), tuple(statistics))

    def _check(self, values: Ragged, width: int) -> None:
        wrong = (values.offsets.diff() % width).nonzero()
        if len(wrong):
            size = int(values.offsets.diff()[wrong[0, 0]])
            raise TeacherError(
                f"{self.teacher.name}: expected logits of {width} classes, as the student has, got "
                f"{size} numbers for an example"
            )


def _all_of(store: SignalStore, keys: np.ndarray) -> Payload:
    found, payload = store.read(keys)
    assert payload is not None, "what was missing has been computed"
    assert found.all(), "what was missing has been computed"
    return payload


def _of_rows(logits: Tensor, counts: np.ndarray) -> Payload:
    values = to_storage(logits.float(), DTYPE)
    offsets = np.concatenate([[0], np.cumsum(counts * values.shape[1])])
    return Payload(values.reshape(-1), offsets)


def _mask_of(answer: Answer, question: Question) -> Tensor | None:
    if question.student.inputs_mask is None:
        return None
    return question.student.inputs_mask if answer.mask is None else answer.mask


def _of_statistic(spec: MatchSpec, statistic: Tensor, mask: Tensor | None) -> Payload:
    ragged = spec.build_loss().pack(statistic, mask)
    return Payload(to_storage(ragged.values, DTYPE), ragged.offsets.cpu().numpy())


def _unpacked(spec: MatchSpec, ragged: Ragged, question: Question, device: torch.device) -> Tensor:
    loss = spec.build_loss()
    mask = None if question.real is None else question.student.inputs_mask
    mask = None if mask is None else mask.to(device)
    ragged = Ragged(ragged.values.to(device), ragged.offsets.to(device))
    length = _padded_length(question.student)
    keep = torch.ones(question.size, length, device=device) if mask is None else mask
    sizes = _sizes_of(spec, loss, ragged, keep.sum(dim=1), question.student)
    return loss.unpack(ragged, mask, sizes, length)


def _padded_length(student: View) -> int:
    # Statistics that have no tokens have one length as well as another.
    if student.attention:
        return student.attention[0].shape[-1]
    return student.hidden[0].shape[-2] if student.hidden and student.hidden[0].dim() > 2 else 1


def _sizes_of(
    spec: MatchSpec, loss: MatchLoss, ragged: Ragged, tokens: Tensor, student: View
) -> FeatureSizes:
    """Work the teacher's hidden size out of how many numbers a row has."""
    layers = spec.teacher_layers
    num_layers = len(set(layers)) if loss.num_layers == 2 else len(layers)
    attention = student.attention[0] if student.attention else None
    own_heads = attention.shape[1] if attention is not None and attention.dim() == 4 else 1
    heads = loss.relation_heads or own_heads
    axes = loss.axes
    if "hidden" not in axes:
        return FeatureSizes(1, own_heads, num_layers)
    row = int(tokens.argmax())
    entries = int(ragged.offsets[row + 1] - ragged.offsets[row])
    others = int(tokens[row]) ** axes.count("token") * heads ** axes.count("head")
    others *= num_layers ** axes.count("layer")
    return FeatureSizes(
        round((entries / max(others, 1)) ** (1 / axes.count("hidden"))), own_heads, num_layers
    )
