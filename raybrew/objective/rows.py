"""Rows of logits: whatever a kind's layout, the losses see (R, C), one row for each answer.

    example   (b, C)     ──►  R = b
    token     (b, L, C)  ──►  R = tokens that are positions of the task (label is not IGNORED)
    position  (b, L)     ──►  R = b, C = L, padding at −∞

What a teacher said of an example is brought to the same rows. Where it read other tokens than the
student, an alignment says which of its tokens answers for which of the student's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raybrew.data.split import IGNORED
from raybrew.errors import LabelError
from raybrew.kinds import Layout
from raybrew.labels.tensors import SoftLabel, TokenTopK
from raybrew.losses.features import Ragged
from raybrew.losses.soft import TopK

__all__ = ["RowIndex", "SoftRows", "top_k_rows"]


@dataclass(frozen=True, eq=False)
class SoftRows:
    """A teacher's answer, row by row.

    Args:
        logits: (R, C), or the largest of each row.
        available: bool (R,), whether the teacher has an answer for the row; None for all of them.
    """

    logits: Tensor | TopK
    available: Tensor | None = None


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

    @staticmethod
    def of(layout: Layout, labels: Tensor, mask: Tensor | None) -> "RowIndex":
        """Work out the rows of a batch.

        Args:
            layout: of the logits.
            labels: of one output, (b, …) or (b, L).
            mask: (b, L), real tokens; needed where tokens are classes.
        """
        if layout == "token":
            example, token = (labels != IGNORED).nonzero(as_tuple=True)
            return RowIndex(layout, len(labels), example, token)
        example = torch.arange(len(labels), device=labels.device)
        if layout == "position":
            assert mask is not None, "positions are tokens"
            return RowIndex(layout, len(labels), example, mask=mask != 0)
        return RowIndex(layout, len(labels), example)

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
    ) -> SoftRows:
        """Take a teacher's rows for one output.

        Args:
            label: what it said of the b examples.
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
        return SoftRows(_reordered(rows.logits, order), rows.available)

    def _of_soft(
        self, label: SoftLabel, widths: Sequence[int], output: int, alignment: Tensor | None
    ) -> SoftRows:
        part = slice(sum(widths[:output]), sum(widths[: output + 1]))
        if self.layout == "example":
            return SoftRows(_columns(label, part, sum(widths)))
        tokens, starts = _tokens(label, sum(widths))
        if alignment is not None and alignment.dim() > 2:
            alignment = alignment[..., output]
        if self.token is not None:
            return self._of_tokens(tokens, starts, part, alignment)
        assert isinstance(tokens, Tensor), "positions are kept whole"
        return self._of_positions(tokens[:, part].squeeze(-1), starts, alignment)

    def _of_tokens(
        self, tokens: Tensor | TopK, starts: Tensor, part: slice, alignment: Tensor | None
    ) -> SoftRows:
        assert self.token is not None
        at = self.token if alignment is None else alignment[self.example, self.token]
        rows = starts[self.example] + at.clamp(min=0)
        available = None if alignment is None else at >= 0
        if isinstance(tokens, TopK):
            return SoftRows(top_k_rows(tokens, rows), available)
        return SoftRows(tokens[rows, part].float(), available)

    def _of_positions(self, values: Tensor, starts: Tensor, alignment: Tensor | None) -> SoftRows:
        assert self.mask is not None
        padded = values.new_full(self.mask.shape, -math.inf, dtype=torch.float32)
        if alignment is None:
            padded[self.mask] = values.float()
            return SoftRows(padded)
        known = self.mask & (alignment >= 0)
        padded[known] = values[(starts[:, None] + alignment)[known]].float()
        return SoftRows(padded)


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


def top_k_rows(tokens: TopK, rows: Tensor) -> TopK:
    """Take rows by index or by mask."""
    sums = tokens.logsumexp
    assert not isinstance(sums, Tensor)
    return TopK(
        values=tokens.values[rows],
        indices=tokens.indices[rows],
        logsumexp={temperature: each[rows] for temperature, each in sums.items()},
    )
