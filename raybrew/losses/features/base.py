"""A match loss: what the teacher has to ship, and what the student does with it.

    teacher's features ──statistic──► (B, …) ──pack──► rows ─ ─ store, wire ─ ─► unpack ─┐
    student's features ──────────────────────────────────────────────► compare ◄────────┘
                                                                          ▼
                                                Partial(numerator, denominator), both (B,)

An example's row depends on its own real tokens alone: not on its neighbours in the batch and
not on the padding, so it can be kept and used again in any other batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from raybrew.errors import ConfigError
from raybrew.losses.features.numerics import Keep, compute_dtype
from raybrew.losses.features.ragged import Axis, FeatureSizes, Ragged, pack, row_shape, unpack
from raybrew.losses.partial import Partial

__all__ = ["Feature", "Features", "Mask", "MatchLoss"]

Feature = Literal["hidden", "attention", "query", "key", "value"]
"""`hidden` is (B, L, H), `attention` (B, A, L, L) or (B, L, L), the others (B, A, L, H/A)."""

Features: TypeAlias = Sequence[Float[Tensor, "batch ..."]]
"""One tensor per layer of the match."""

Mask: TypeAlias = Shaped[Tensor, "batch length"] | None
"""1 = real token, of any dtype; None where the adaptor gives no `inputs_mask`."""


def _as_stored(statistic: Tensor, keep: Keep) -> Tensor:
    return statistic


@dataclass(frozen=True)
class MatchLoss:
    """One loss between features of a teacher and of a student.

    Attributes:
        name: as it is asked for.
        features: the kinds of feature it compares.
        num_layers: layers it takes on each side; None for any number.
        axes: what each axis of one example's statistic is.
        statistic: the teacher's side, (features, keep) → (B, *axes).
        compare: the student's side, (features, keep, statistic) → numerators (B,).
        count: denominators, (lengths (B,), sizes) → (B,).
        needs_same_size: whether the student's vectors must be as long as the teacher's.
        needs_same_heads: whether both must have as many attention heads.
        batch_level: whether it compares examples with each other, within one micro-batch.
        relation_heads: heads of the statistic where they aren't the model's own.
        restore: what padding has to hold after `unpack`, where that isn't zero.
        projection_per_layer: whether each layer of the student gets a projection of its own.
        padding_counts: whether its value depends on how far a batch is padded.
    """

    name: str
    features: tuple[Feature, ...]
    num_layers: int | None
    axes: tuple[Axis, ...]
    statistic: Callable[[Features, Keep], Tensor]
    compare: Callable[[Features, Keep, Tensor], Tensor]
    count: Callable[[Tensor, FeatureSizes], Tensor]
    needs_same_size: bool = False
    needs_same_heads: bool = False
    batch_level: bool = False
    relation_heads: int | None = None
    restore: Callable[[Tensor, Keep], Tensor] = _as_stored
    projection_per_layer: bool = False
    padding_counts: bool = False

    def teacher_statistic(self, teacher: Features, mask: Mask) -> Float[Tensor, "batch ..."]:
        """Reduce the teacher's features to what the loss needs of them.

        Args:
            teacher: one tensor per layer; the same object twice where both layers are one.
            mask: (B, L), real tokens; None where there is none.

        Returns:
            (B, *axes), padded like the batch, apart from the graph.
        """
        with torch.no_grad():
            return self.statistic(teacher, _keep(mask))

    def loss(self, student: Features, mask: Mask, statistic: Float[Tensor, "batch ..."]) -> Partial:
        """Compare the student's features with a teacher's statistic.

        Args:
            student: one tensor per layer, projected where the sizes differ.
            mask: (B, L), real tokens; None where there is none.
            statistic: (B, *axes) in any float dtype, padded like the student's batch.

        Returns:
            Numerators and denominators, (B,) each.

        Raises:
            ConfigError: the statistic doesn't have the shape that the student's features ask for.
        """
        self._check_shape(student, statistic)
        # The student's precision decides, whatever the statistic was stored in.
        target = statistic.to(compute_dtype(student[0]))
        numerator = self.compare(student, _keep(mask), target)
        lengths = _lengths(student[0], mask)
        denominator = self.count(lengths.double(), self._student_sizes(student))
        return Partial(numerator, denominator.to(numerator.dtype))

    def denominator(
        self, lengths: Shaped[Tensor, " batch"], sizes: FeatureSizes
    ) -> Float[Tensor, " batch"]:
        """Give the denominators that `loss` will have, from what is known before the forward.

        Args:
            lengths: real tokens of each example (the padded length where there is no mask).
            sizes: those of the student's features after projection.

        Returns:
            float64, exact.
        """
        return self.count(lengths.double(), self._own_heads(sizes))

    def payload_shape(self, num_tokens: int, sizes: FeatureSizes) -> tuple[int, ...]:
        """Shape of what is shipped for one example of `num_tokens` real tokens."""
        return row_shape(self.axes, num_tokens, self._own_heads(sizes))

    def pack(self, statistic: Float[Tensor, "batch ..."], mask: Mask) -> Ragged:
        """Leave the padding out of a batch of statistics, to be stored or shipped.

        Args:
            statistic: (B, *axes), of `teacher_statistic`.
            mask: (B, L), the one it was made with.

        Returns:
            Flat values, and where each example's start.
        """
        return pack(statistic, self._stored_tokens(statistic, mask), self.axes)

    def unpack(
        self, ragged: Ragged, mask: Mask, sizes: FeatureSizes, padded_length: int | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Pad rows for the batch that asks.

        Args:
            ragged: one row per example of the batch.
            mask: (B, L), the student's real tokens; None where there is none.
            sizes: the teacher's.
            padded_length: L, needed only where there is no mask.

        Returns:
            (B, *axes), as `loss` takes it.

        Raises:
            LabelError: a row was made from another number of tokens.
        """
        rows = ragged.offsets.shape[0] - 1
        keep = _keep(mask)
        places = keep
        if places is None:
            length = padded_length if padded_length is not None else 1
            places = ragged.offsets.new_ones((rows, length), dtype=torch.bool)
        return self.restore(unpack(ragged, places, self.axes, self._own_heads(sizes)), keep)

    def _check_shape(self, student: Features, statistic: Tensor) -> None:
        length = student[0].shape[-2] if student[0].dim() > 2 else 1
        shape = row_shape(self.axes, length, self._student_sizes(student))
        free = {"layer"} | (set() if self.needs_same_size else {"hidden"})
        expected = [
            None if axis in free else size for axis, size in zip(self.axes, shape, strict=True)
        ]
        expected.insert(0, student[0].shape[0])
        found = list(statistic.shape)
        fits = len(found) == len(expected) and all(
            size in (None, got) for size, got in zip(expected, found, strict=True)
        )
        if not fits:
            asked = ["any" if size is None else size for size in expected]
            raise ConfigError(
                f"Match loss {self.name!r}: the student's features {list(student[0].shape)} ask "
                f"for a teacher statistic (batch, {', '.join(self.axes)}) of {asked}; got {found}. "
                "Vectors of different sizes need a projection; sentences of different lengths, the "
                "same tokenizer and max_length on both sides."
            )

    def _stored_tokens(self, statistic: Tensor, mask: Mask) -> Tensor:
        if mask is not None:
            return mask != 0
        length = statistic.shape[1 + self.axes.index("token")] if "token" in self.axes else 1
        return torch.ones(statistic.shape[0], length, dtype=torch.bool, device=statistic.device)

    def _student_sizes(self, student: Features) -> FeatureSizes:
        heads = student[0].shape[1] if student[0].dim() == 4 else 1
        return self._own_heads(FeatureSizes(student[0].shape[-1], heads, len(student)))

    def _own_heads(self, sizes: FeatureSizes) -> FeatureSizes:
        if self.relation_heads is None:
            return sizes
        return FeatureSizes(sizes.hidden, self.relation_heads, sizes.layers)


def _keep(mask: Mask) -> Keep:
    return None if mask is None else mask != 0


def _lengths(feature: Tensor, mask: Mask) -> Tensor:
    if mask is not None:
        return (mask != 0).sum(dim=1)
    length = feature.shape[-2] if feature.dim() > 2 else 1
    return torch.full((feature.shape[0],), length, device=feature.device)
