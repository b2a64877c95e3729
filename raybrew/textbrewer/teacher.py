"""A teacher of a script: a model in the caller's process, asked batch by batch.

    Question ──► forward ──► adaptor ──► rows of logits, a statistic for each match ──► Answer

It answers in `eval` mode, whatever mode it is in: what it says of an example is the same each time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raybrew.errors import TeacherError
from raybrew.matches.spec import MatchSpec
from raybrew.tasks.adaptors import View
from raybrew.textbrewer.batch import call, move_to_device, take_rows
from raybrew.textbrewer.reading import Adaptor, features_of, read, rows_of_logits


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of a teacher.

    Args:
        batch: that it reads.
        size: examples in it.
        student: what the student's adaptor said, whose masks serve a teacher that gives none.
        cache: outputs that the script brought along; the model is not run then.
        real: (B, L), the tokens that an answer depends on; None where the padding counts as well.
    """

    batch: Any
    size: int
    student: View
    cache: Any = None
    real: Tensor | None = None

    def take(self, rows: Tensor) -> "Question":
        """Ask the same of some examples, int64 (n,)."""

        def of(mask: Tensor | None) -> Tensor | None:
            return None if mask is None else mask[rows.to(mask.device)]

        student = View(
            logits=tuple(each[rows.to(each.device)] for each in self.student.logits),
            logits_mask=tuple(map(of, self.student.logits_mask)),
            inputs_mask=of(self.student.inputs_mask),
        )
        batch = take_rows(self.batch, rows, self.size)
        return Question(batch, len(rows), student, real=of(self.real))

    def without_logits(self) -> "Question":
        """Ask for what matches need alone."""
        return replace(self, student=replace(self.student, logits=(), logits_mask=()))


@dataclass(frozen=True, eq=False)
class Answer:
    """What a teacher says.

    Args:
        logits: of each of the student's logits, (R, C).
        counts: of each logits, rows of each example, int64 (B,).
        statistics: of each match, (B, …), padded as the batch is.
        mask: (B, L), real tokens by its own adaptor; None where it gives none.
    """

    logits: tuple[Tensor, ...]
    counts: tuple[np.ndarray, ...]
    statistics: tuple[Tensor, ...]
    mask: Tensor | None = None


@dataclass
class Teacher:
    """A model, its adaptor, and what is compared of it.

    Args:
        name: for messages.
        model: on the script's device.
        adaptor: says what its outputs mean.
        device: where it reads batches.
        matches: of this teacher.
        arguments: of every forward pass.
        autocast: precision of the forward pass.

    Attributes:
        forwards: examples that it computed.
    """

    name: str
    model: nn.Module
    adaptor: Adaptor
    device: torch.device
    matches: Sequence[MatchSpec]
    arguments: Mapping[str, Any]
    autocast: Callable[[], AbstractContextManager[Any]]
    forwards: int = field(default=0, init=False)

    @torch.no_grad()
    def ask(self, question: Question) -> Answer:
        """Run the model, or take the outputs that the script brought along.

        Raises:
            ConfigError: a layer that its adaptor doesn't give.
            TeacherError: not as many logits as the student has.
        """
        batch = move_to_device(question.batch, self.device)
        if question.cache is None:
            with _answering(self.model), self.autocast():
                outputs = call(self.model, batch, self.arguments)
            self.forwards += question.size
        else:
            outputs = move_to_device(question.cache, self.device)
        view = self._as_asked(read(self.adaptor, batch, outputs), question.student)
        mask = _mask_of_matches(view, question.student)
        return Answer(
            rows_of_logits(view),
            tuple(_counts(view, number) for number in range(len(view.logits))),
            tuple(
                spec.build_loss().teacher_statistic(features_of(view, spec, "teacher"), mask)
                for spec in self.matches
            ),
            view.inputs_mask,
        )

    def _as_asked(self, view: View, student: View) -> View:
        """Leave the logits that the student has as well, in the rows that are learnt from."""
        if not student.logits:
            return replace(view, logits=(), logits_mask=())
        if len(view.logits) != len(student.logits):
            raise TeacherError(
                f"{self.name}: expected {len(student.logits)} logits, as the student's adaptor "
                f"gives, got {len(view.logits)}; without a loss on logits set kd_loss_weight to 0"
            )
        masked = any(mask is not None for mask in view.logits_mask)
        return view if masked else replace(view, logits_mask=student.logits_mask)


def _mask_of_matches(view: View, student: View) -> Tensor | None:
    """Return which tokens matches compare: as the student says, by the teacher's own mask."""
    if student.inputs_mask is None:
        return None
    return student.inputs_mask if view.inputs_mask is None else view.inputs_mask


def _counts(view: View, number: int) -> np.ndarray:
    logits, mask = view.logits[number], view.logits_mask[number]
    if logits.dim() < 3:
        return np.ones(len(logits), np.int64)
    if mask is None:
        return np.full(len(logits), logits.shape[1:-1].numel(), np.int64)
    return (mask != 0).sum(dim=1).cpu().numpy()


@contextmanager
def _answering(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
