"""What the student and its teachers say of a batch, side by side in rows, for each output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raybrew.errors import ConfigError, TeacherError
from raybrew.kinds import Layout
from raybrew.labels.tensors import SoftLabel
from raybrew.losses.soft import TopK
from raybrew.models.adaptors import View
from raybrew.objective.rows import RowIndex, SoftRows, top_k_rows

__all__ = ["AnsweredRows", "answered_rows", "index_of"]


@dataclass(frozen=True, eq=False)
class AnsweredRows:
    """One output of a batch, row by row; every row has an answer of at least one teacher.

    Args:
        student_logits: (R, C).
        soft: of each teacher.
        labels: (R, …).
        row_keys: int64 (R,).
        route: int64 (R,).
    """

    student_logits: Tensor
    soft: Sequence[SoftRows]
    labels: Tensor
    row_keys: Tensor | None
    route: Tensor | None


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


def answered_rows(
    layout: Layout,
    student: View,
    soft: Mapping[str, SoftLabel],
    teachers: Sequence[str],
    row_keys: Tensor | None,
    route: Tensor | None,
    alignment: Mapping[str, Tensor],
    orders: Mapping[str, Sequence[int]],
) -> list[AnsweredRows]:
    """Bring student and teachers to the same rows, once for each output.

    Args:
        layout: of the logits.
        student: its view of b examples.
        soft: by teacher; one that was dropped is left out. Empty where there are no examples.
        teachers: in the order of their weights.
        row_keys: int64 (b,).
        route: int64 (b,).
        alignment: by teacher with tokens of its own, int64 (b, L, …), -1 = none of them answers.
        orders: by teacher whose classes are in another order, its number of each class.

    Returns:
        One for each of the student's logits. Tokens for which no teacher has an answer are left
        out, and so are positions that one of them doesn't know.

    Raises:
        ConfigError: the adaptor gives no logits, or masks logits that have a label.
        LabelError: labels of another size than the student's logits.
        TeacherError: every teacher was dropped.
    """
    index = index_of(layout, student)
    keys = None if row_keys is None else index.of_examples(row_keys)
    routes = None if route is None else index.of_examples(route)
    widths = [1 if index.mask is not None else each.shape[-1] for each in student.logits]
    outputs = []
    for output, logits in enumerate(student.logits):
        rows = index.of_logits(logits)
        if len(logits):
            said = {
                name: index.of_soft(
                    soft[name], widths, output, alignment.get(name), orders.get(name)
                )
                for name in teachers
                if name in soft
            }
            answers = _with_stand_ins(said, teachers)
        else:
            # A rank without examples: it has no labels, and needs none.
            answers = [SoftRows(rows.detach()) for _ in teachers]
        found = AnsweredRows(rows, answers, index.of_labels(student.labels[output]), keys, routes)
        if alignment:
            found = _common_positions(found) if index.mask is not None else _reached(found)
        outputs.append(found)
    return outputs


def _with_stand_ins(said: Mapping[str, SoftRows], teachers: Sequence[str]) -> list[SoftRows]:
    """Let another teacher's words stand, with no weight, for those of one that was dropped."""
    if not said:
        raise TeacherError(
            f"teachers {', '.join(teachers)}: all of them were dropped, which leaves nobody to "
            "learn from; a new run goes on from the labels that are in the store"
        )
    other = next(iter(said.values()))
    rows = other.logits.values if isinstance(other.logits, TopK) else other.logits
    nobody = SoftRows(other.logits, rows.new_zeros(len(rows), dtype=torch.bool))
    return [said.get(name, nobody) for name in teachers]


def _check_mask(index: RowIndex, mask: Tensor) -> None:
    if not bool((mask[index.example, index.token] != 0).all()):
        raise ConfigError(
            "adaptor: expected a logits_mask that keeps every token with a label, got one that "
            "leaves some out; losses are divided by the count of labels: give those tokens the "
            "label -100 instead"
        )


def _common_positions(found: AnsweredRows) -> AnsweredRows:
    """Leave out the positions that a teacher doesn't know, on all sides."""
    dense = [one.logits for one in found.soft if isinstance(one.logits, Tensor)]
    unknown = torch.stack([each.isneginf() for each in dense]).any(dim=0)
    return replace(
        found,
        student_logits=found.student_logits.masked_fill(unknown, -torch.inf),
        soft=[
            SoftRows(each.masked_fill(unknown, -torch.inf), one.available)
            for each, one in zip(dense, found.soft, strict=True)
        ],
    )


def _reached(found: AnsweredRows) -> AnsweredRows:
    """Leave out the rows for which no teacher has an answer."""
    everywhere = torch.ones(
        len(found.student_logits), dtype=torch.bool, device=found.student_logits.device
    )
    each = [everywhere if one.available is None else one.available for one in found.soft]
    kept = torch.stack(each).any(dim=0)
    return AnsweredRows(
        student_logits=found.student_logits[kept],
        soft=[
            SoftRows(_taken(one.logits, kept), available[kept])
            for one, available in zip(found.soft, each, strict=True)
        ],
        labels=found.labels[kept],
        row_keys=None if found.row_keys is None else found.row_keys[kept],
        route=None if found.route is None else found.route[kept],
    )


def _taken(logits: Tensor | TopK, rows: Tensor) -> Tensor | TopK:
    return top_k_rows(logits, rows) if isinstance(logits, TopK) else logits[rows]
