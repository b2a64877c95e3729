"""Rows of logits: the logits of student and teachers, brought to the same rows.

Whatever the layout of a task type, the losses see (R, C), one row for each prediction:

    example   (b, C)     ──►  R = b
    token     (b, L, C)  ──►  R = tokens that are positions of the task (label is not IGNORED)
    position  (b, L)     ──►  R = b, C = L, padding at −∞

A teacher's label of an example is brought to the same rows. Where it reads other tokens than the
student, an alignment maps the student's tokens to its tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from raybrew.data.split import IGNORED
from raybrew.errors import ConfigError, LabelError, TeacherError
from raybrew.labels.logits import SoftLabel, TokenTopK
from raybrew.losses.match_loss import Ragged
from raybrew.losses.mixture import RowInputs
from raybrew.losses.numerics import TopK
from raybrew.tasks.task_type import Layout, View


class TeacherRows(NamedTuple):
    """A teacher's logits, row by row.

    Args:
        logits: (R, C), or the largest of each row.
        available: bool (R,), whether the teacher has an answer for the row; None for all of them.
    """

    logits: Tensor | TopK
    available: Tensor | None = None

    @property
    def is_available(self) -> Tensor:
        """Whether the teacher has an answer, bool (R,)."""
        if self.available is not None:
            return self.available
        values = self.logits.values if isinstance(self.logits, TopK) else self.logits
        return values.new_ones(len(values), dtype=torch.bool)


@dataclass(frozen=True, eq=False)
class RowIndex:
    """Which rows a batch of b examples has.

    Args:
        layout: of the logits.
        num_examples: b.
        example: int64 (R,), example of each row.
        token: int64 (R,), its token; None where a row isn't one.
        mask: bool (b, L), tokens that are classes; None where tokens aren't.
    """

    layout: Layout
    num_examples: int
    example: Tensor
    token: Tensor | None = None
    mask: Tensor | None = None

    @classmethod
    def of(cls, layout: Layout, labels: Tensor, mask: Tensor | None) -> "RowIndex":
        """Work out the rows of a batch.

        Args:
            layout: of the logits.
            labels: of one output, (b, …) or (b, L).
            mask: (b, L), real tokens; needed where tokens are classes.
        """
        if layout == "token":
            example, token = (labels != IGNORED).nonzero(as_tuple=True)
            return cls(layout, len(labels), example, token)
        example = torch.arange(len(labels), device=labels.device)
        if layout == "position":
            assert mask is not None, "positions are tokens"
            return cls(layout, len(labels), example, mask=mask != 0)
        return cls(layout, len(labels), example)

    def __len__(self) -> int:
        return len(self.example)

    def of_logits(self, logits: Tensor) -> Tensor:
        """Take the rows of the student's logits, (R, C)."""
        if self.token is not None:
            return logits[self.example, self.token]
        return logits if self.mask is None else logits.masked_fill(~self.mask, -math.inf)

    def of_labels(self, labels: Tensor) -> Tensor:
        """Take the rows of labels, (R, …)."""
        return labels if self.token is None else labels[self.example, self.token]

    def of_examples(self, values: Tensor) -> Tensor:
        """Repeat a value of each example in its rows."""
        return values if self.token is None else values[self.example]

    def of_soft(
        self,
        label: SoftLabel,
        widths: Sequence[int],
        output: int,
        alignment: Tensor | None = None,
        order: Sequence[int] | None = None,
    ) -> TeacherRows:
        """Take a teacher's rows for one output.

        Args:
            label: of the b examples.
            widths: classes of each output, which lie side by side in a row of the label; 1 each
                where tokens are classes.
            output: which.
            alignment: int64 (b, L) or (b, L, outputs), the teacher's token for each of the
                student's, -1 for none; None if they read the same.
            order: the teacher's number of each class; None if it is the task's.

        Raises:
            LabelError: a label of another size than the student's logits.
        """
        rows = self._of_soft(label, widths, output, alignment)
        if order is None:
            return rows
        return TeacherRows(_reordered(rows.logits, order), rows.available)

    def _of_soft(
        self, label: SoftLabel, widths: Sequence[int], output: int, alignment: Tensor | None
    ) -> TeacherRows:
        part = slice(sum(widths[:output]), sum(widths[: output + 1]))
        if self.layout == "example":
            return TeacherRows(_columns(label, part, sum(widths)))
        tokens, starts = _tokens(label, sum(widths))
        if alignment is not None and alignment.dim() > 2:
            alignment = alignment[..., output]
        if self.token is not None:
            return self._of_tokens(tokens, starts, part, alignment)
        assert isinstance(tokens, Tensor), "positions are kept whole"
        return self._of_positions(tokens[:, part].squeeze(-1), starts, alignment)

    def _of_tokens(
        self, tokens: Tensor | TopK, starts: Tensor, part: slice, alignment: Tensor | None
    ) -> TeacherRows:
        assert self.token is not None
        at = self.token if alignment is None else alignment[self.example, self.token]
        rows = starts[self.example] + at.clamp(min=0)
        available = None if alignment is None else at >= 0
        if isinstance(tokens, TopK):
            return TeacherRows(tokens.take(rows), available)
        return TeacherRows(tokens[rows, part].float(), available)

    def _of_positions(
        self, values: Tensor, starts: Tensor, alignment: Tensor | None
    ) -> TeacherRows:
        assert self.mask is not None
        padded = values.new_full(self.mask.shape, -math.inf, dtype=torch.float32)
        if alignment is None:
            padded[self.mask] = values.float()
            return TeacherRows(padded)
        known = self.mask & (alignment >= 0)
        padded[known] = values[(starts[:, None] + alignment)[known]].float()
        return TeacherRows(padded)


def _reordered(logits: Tensor | TopK, order: Sequence[int]) -> Tensor | TopK:
    """Bring a teacher's classes into the task's order."""
    if isinstance(logits, TopK):
        places = torch.empty(len(order), dtype=torch.int64, device=logits.indices.device)
        places[list(order)] = torch.arange(len(order), device=places.device)
        return replace(logits, indices=places[logits.indices])
    return logits[:, list(order)]


def _columns(label: SoftLabel, part: slice, width: int) -> Tensor | TopK:
    if isinstance(label, TopK):
        return label
    assert isinstance(label, Tensor), "one row an example"
    if label.shape[-1] != width:
        raise LabelError(
            f"logits of a teacher: expected {width} for each example, as the student's adaptor "
            f"gives, got {label.shape[-1]}"
        )
    return label[:, part].float()


def _tokens(label: SoftLabel, width: int) -> tuple[Tensor | TopK, Tensor]:
    """Return values of each token, (T, width), and the first token of each example."""
    if isinstance(label, TokenTopK):
        return label.top_k, label.offsets[:-1]
    assert isinstance(label, Ragged), "one row a token"
    return label.values.view(-1, width), label.offsets[:-1] // width


class AlignedRows(NamedTuple):
    """One output of a batch, row by row; every row has an answer of at least one teacher.

    Args:
        student_logits: (R, C).
        teachers: of each teacher, in the order of their weights.
        inputs: labels (R, …), keys and routes (R,).
    """

    student_logits: Tensor
    teachers: Sequence[TeacherRows]
    inputs: RowInputs


class ExampleInputs(NamedTuple):
    """What is known of each example of a batch besides labels.

    Args:
        row_keys: int64 (b,), tells examples apart for a random pick of teachers.
        route: int64 (b,), index of each example's teacher.
        alignment: by teacher with tokens of its own, int64 (b, L, …): which of them answers for
            each of the student's, -1 for none.
    """

    row_keys: Tensor | None = None
    route: Tensor | None = None
    alignment: Mapping[str, Tensor] = MappingProxyType({})


NO_EXAMPLE_INPUTS = ExampleInputs()


def index_of(layout: Layout, student: View) -> RowIndex:
    """Return the rows of a batch.

    Raises:
        ConfigError: the adaptor gives no logits, or masks logits that have a label.
    """
    if not student.logits:
        raise ConfigError(
            "adaptor: expected `logits` for the losses on logits and labels, got none; give them, "
            "or `losses` with kd_loss_weight 0"
        )
    given = student.logits_mask[0] if student.logits_mask else None
    mask = student.inputs_mask if given is None else given
    index = RowIndex.of(layout, student.labels[0], mask)
    if index.token is not None and given is not None:
        _check_mask(index, given)
    return index


def align_rows(
    layout: Layout,
    student: View,
    soft: Mapping[str, SoftLabel],
    teachers: Sequence[str],
    examples: ExampleInputs,
    orders: Mapping[str, Sequence[int]],
) -> list[AlignedRows]:
    """Bring student and teachers to the same rows, once for each output.

    Args:
        layout: of the logits.
        student: its view of b examples.
        soft: by teacher; one that was dropped is left out. Empty where there are no examples.
        teachers: in the order of their weights.
        examples: keys, routes and alignments.
        orders: by teacher whose classes are in another order, its number of each class.

    Returns:
        One for each of the student's logits. Tokens for which no teacher has an answer are left
        out, and so are positions that one of them doesn't know.

    Raises:
        ConfigError: the adaptor gives no logits, or masks logits that have a label.
        LabelError: labels of another size than the student's logits.
        TeacherError: every teacher was dropped.
    """
    index, alignment = index_of(layout, student), examples.alignment
    keys = None if examples.row_keys is None else index.of_examples(examples.row_keys)
    route = None if examples.route is None else index.of_examples(examples.route)
    widths = [1 if index.mask is not None else each.shape[-1] for each in student.logits]
    outputs = []
    for output, logits in enumerate(student.logits):
        rows = index.of_logits(logits)
        if len(logits):
            found = {
                name: index.of_soft(
                    soft[name], widths, output, alignment.get(name), orders.get(name)
                )
                for name in teachers
                if name in soft
            }
            answers = _with_stand_ins(found, teachers)
        else:
            # A rank without examples: it has no labels, and needs none.
            answers = [TeacherRows(rows.detach()) for _ in teachers]
        labels = index.of_labels(student.labels[output])
        aligned = AlignedRows(rows, answers, RowInputs(labels, route, keys))
        if alignment:
            aligned = _common_positions(aligned) if index.mask is not None else _reached(aligned)
        outputs.append(aligned)
    return outputs


def _with_stand_ins(found: Mapping[str, TeacherRows], teachers: Sequence[str]) -> list[TeacherRows]:
    """Let another teacher's rows stand in, with no weight, for those of one that was dropped."""
    if not found:
        raise TeacherError(
            f"teachers {', '.join(teachers)}: all of them were dropped, so there is nothing to "
            "learn from; a new run goes on from the labels that are in the store"
        )
    other = next(iter(found.values()))
    absent = TeacherRows(other.logits, torch.zeros_like(other.is_available))
    return [found.get(name, absent) for name in teachers]


def _check_mask(index: RowIndex, mask: Tensor) -> None:
    if not bool((mask[index.example, index.token] != 0).all()):
        raise ConfigError(
            "adaptor: expected a logits_mask that keeps every token with a label, got one that "
            "leaves some out; losses are divided by the count of labels: give those tokens the "
            "label -100 instead"
        )


def _common_positions(aligned: AlignedRows) -> AlignedRows:
    """Leave out the positions that a teacher doesn't know, on all sides."""
    dense = [one.logits for one in aligned.teachers if isinstance(one.logits, Tensor)]
    unknown = torch.stack([each.isneginf() for each in dense]).any(dim=0)
    teachers = [
        TeacherRows(each.masked_fill(unknown, -math.inf), one.available)
        for each, one in zip(dense, aligned.teachers, strict=True)
    ]
    student_logits = aligned.student_logits.masked_fill(unknown, -math.inf)
    return AlignedRows(student_logits, teachers, aligned.inputs)


def _reached(aligned: AlignedRows) -> AlignedRows:
    """Leave out the rows for which no teacher has an answer."""
    available = [one.is_available for one in aligned.teachers]
    kept = torch.stack(available).any(dim=0)
    teachers = [
        TeacherRows(
            one.logits.take(kept) if isinstance(one.logits, TopK) else one.logits[kept], each[kept]
        )
        for one, each in zip(aligned.teachers, available, strict=True)
    ]
    labels, route, keys = (
        None if each is None else each[kept]
        for each in (aligned.inputs.labels, aligned.inputs.route, aligned.inputs.row_keys)
    )
    return AlignedRows(aligned.student_logits[kept], teachers, RowInputs(labels, route, keys))
