"""A match loss: the statistic that the teacher ships, and what the student compares with it.

    teacher's features ──statistic──► (B, …) ──pack──► rows ─ ─ store, wire ─ ─► unpack ─┐
    student's features ──────────────────────────────────────────────► compare ◄────────┘
                                                                          ▼
                                                Partial(numerator, denominator), both (B,)

An example's row depends on its own real tokens alone: not on its neighbours in the batch and not on
the padding, so it can be kept and used again in any other batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from raybrew.errors import ConfigError, LabelError
from raybrew.losses.numerics import Keep, promoted


class Partial(NamedTuple):
    """A loss before it is normalised, per example: what it adds up, and what that is divided by.

    The loss over any set of examples is `numerator.sum() / denominator.sum()`, so it may be
    split over ranks and micro-batches. Denominators depend on masks and static sizes alone.
    """

    numerator: Float[Tensor, " batch"]
    denominator: Float[Tensor, " batch"]


Feature = Literal["hidden", "attention", "query", "key", "value"]
"""`hidden` is (B, L, H), `attention` (B, A, L, L) or (B, L, L), the others (B, A, L, H/A)."""

Features: TypeAlias = Sequence[Float[Tensor, "batch ..."]]
"""One tensor per layer of the match."""

Mask: TypeAlias = Shaped[Tensor, "batch length"] | None
"""1 = real token, of any dtype; None where the adaptor gives no `inputs_mask`."""

Axis = Literal["layer", "head", "token", "hidden"]


class FeatureSizes(NamedTuple):
    """The static sizes a statistic has besides its number of tokens.

    Attributes:
        hidden: entries of one token's vector at the teacher (after projection, at the student).
        heads: attention heads.
        layers: distinct layers that go into the statistic.
    """

    hidden: int
    heads: int = 1
    layers: int = 1


UNKNOWN_SIZE = 0
"""Stands for a hidden size that `MatchLoss.unpack` works out of the number of values of a row."""


class Ragged(NamedTuple):
    """Rows of different lengths, one after another: of a statistic its real tokens alone.

        padded (B, A, L, L) ──pack──► values, flat   [ex. 0: A·n₀·n₀ | ex. 1: A·n₁·n₁ | …]
                            ◄─unpack─ offsets (B+1,) [0, A·n₀², A·n₀²+A·n₁², …]

    Real tokens keep their order, so an example's row doesn't depend on the padding of its batch.
    It can be put back under another padding, also when the mask has holes.
    """

    values: Shaped[Tensor, " elements"]
    offsets: Int64[Tensor, " rows_and_one"]


def row_shape(axes: tuple[Axis, ...], num_tokens: int, sizes: FeatureSizes) -> tuple[int, ...]:
    """Shape of one example's statistic, `num_tokens` real tokens long."""
    extents = {
        "token": num_tokens,
        "hidden": sizes.hidden,
        "head": sizes.heads,
        "layer": sizes.layers,
    }
    return tuple(extents[axis] for axis in axes)


def pack(padded: Shaped[Tensor, "batch ..."], mask: Mask, axes: tuple[Axis, ...]) -> Ragged:
    """Leave the padding out.

    Args:
        padded: statistics of a batch.
        mask: (B, L), real tokens; None where every token is one.
        axes: what each axis after the first is.

    Returns:
        The real entries, row after row, and where each row starts.
    """
    num_token_axes = axes.count("token")
    if mask is None:
        length = padded.shape[1 + axes.index("token")] if num_token_axes else 1
        mask = torch.ones(padded.shape[0], length, device=padded.device)
    keep = mask != 0
    if num_token_axes == 0:
        values = padded.reshape(-1)
        row_sizes = torch.full_like(keep[:, 0], padded[0].numel(), dtype=torch.int64)
    else:
        values = padded[_selection(keep, axes, padded.shape[1:])].reshape(-1)
        static = math.prod(s for a, s in zip(axes, padded.shape[1:], strict=True) if a != "token")
        row_sizes = keep.sum(dim=1) ** num_token_axes * static
    offsets = torch.nn.functional.pad(row_sizes.cumsum(dim=0), (1, 0))
    return Ragged(values, offsets)


def unpack(
    ragged: Ragged,
    keep: Bool[Tensor, "batch length"],
    axes: tuple[Axis, ...],
    sizes: FeatureSizes,
) -> Shaped[Tensor, "batch ..."]:
    """Put rows back where the mask's real tokens are, with zeros at padding.

    Args:
        ragged: one row per example of the batch, in its order.
        keep: real tokens of the batch that asks; as many per row as the row was packed from.
        axes: what each axis after the first is.
        sizes: the static sizes the rows were packed with.

    Returns:
        The statistics of the batch, padded as `keep` is.

    Raises:
        LabelError: a row holds another number of entries than its real tokens ask for.
    """
    shape = row_shape(axes, keep.shape[1], sizes)
    num_token_axes = axes.count("token")
    static = math.prod(size for axis, size in zip(axes, shape, strict=True) if axis != "token")
    _check_row_sizes(ragged.offsets, keep.sum(dim=1), num_token_axes, static)
    if num_token_axes == 0:
        return ragged.values.view(keep.shape[0], *shape)
    padded = ragged.values.new_zeros(keep.shape[0], *shape)
    selection = _selection(keep, axes, shape)
    padded[selection] = ragged.values.view(-1, *padded.shape[selection.dim() :])
    return padded


def _selection(keep: Tensor, axes: tuple[Axis, ...], shape: Sequence[int]) -> Tensor:
    """Which rows are real; it stops at the last token axis, so whole vectors move at once."""
    depth = max(i for i, axis in enumerate(axes) if axis == "token") + 1
    selection = keep.new_ones(keep.shape[0], *shape[:depth])
    for i, axis in enumerate(axes[:depth]):
        if axis == "token":
            others_before, others_after = (1,) * i, (1,) * (depth - i - 1)
            selection &= keep.view(keep.shape[0], *others_before, -1, *others_after)
    return selection


def _inferred_sizes(
    ragged: Ragged, keep: Tensor, axes: tuple[Axis, ...], known: FeatureSizes
) -> FeatureSizes:
    """Work the one unknown size of a statistic out of the number of its values."""
    lengths = keep.sum(dim=1)
    row = int(lengths.argmax())
    per_token = int(lengths[row]) ** axes.count("token")
    entries = int(ragged.offsets[row + 1] - ragged.offsets[row]) // max(per_token, 1)
    if "hidden" in axes:
        others = math.prod(row_shape(axes, 1, known._replace(hidden=1)))
        return known._replace(hidden=entries // others)
    return FeatureSizes(1, entries if "head" in axes else known.heads, known.layers)


def _check_row_sizes(offsets: Tensor, lengths: Tensor, num_token_axes: int, static: int) -> None:
    expected = lengths**num_token_axes * static
    found = offsets.diff()
    if found.shape != expected.shape:
        raise LabelError(
            f"Labels of {found.shape[0]} examples came for a batch of {expected.shape[0]}."
        )
    wrong = (found != expected).nonzero()
    if wrong.numel():
        row = int(wrong[0])
        raise LabelError(
            f"Row {row} of the batch has {int(lengths[row])} real tokens, so its teacher "
            f"statistic has to hold {int(expected[row])} numbers; it holds {int(found[row])}. "
            "A match by token needs the same tokens at teacher and student: use the same "
            "tokenizer and max_length for both, or a loss that doesn't ship tokens (pkd, fsp with "
            'the option payload="gram").'
        )


# Denominators of the match losses: functions of lengths n and static sizes alone.

Lengths = Float[Tensor, " batch"]


def tokens(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return n: a mean over tokens."""
    return lengths


def token_entries(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return n·H: a mean over the entries of real tokens."""
    return lengths * sizes.hidden


def pairs(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return n²: a mean over pairs of real tokens."""
    return lengths.square()


def head_pairs(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return A·n²: a mean over heads and pairs of real tokens."""
    return lengths.square() * sizes.heads


def head_queries(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return A·n: a mean over heads and queries."""
    return lengths * sizes.heads


def examples(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return 1 for each example that has a real token."""
    return (lengths > 0).to(lengths.dtype)


def gram_entries(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return H²: a mean over a Gram matrix of features."""
    return examples(lengths, sizes) * sizes.hidden**2


def pairs_of_examples(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return N each, N² in sum: a mean over pairs of the N examples that have a token."""
    present = examples(lengths, sizes)
    return present * present.sum()


def triplets_of_examples(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return N² each, N³ in sum."""
    present = examples(lengths, sizes)
    return present * present.sum().square()


def two_examples(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return 1 for each example in a batch of two or more: one alone can't be compared."""
    present = examples(lengths, sizes)
    return present * (present.sum() > 1)


@dataclass(frozen=True)
class MatchLoss:
    """One loss between features of a teacher and of a student.

    Attributes:
        name: how a configuration calls it.
        axes: what each axis of one example's statistic is.
        statistic: the teacher's side, (features, keep) → (B, *axes).
        compare: the student's side, (features, keep, statistic) → numerators (B,).
        count: denominators, (lengths (B,), sizes) → (B,).
        features: which features it can compare; none where it compares outputs of modules, whose
            shapes aren't known.
        num_layers: layers it takes on each side; None for any number.
        needs_same_size: whether the student's vectors must be as long as the teacher's.
        needs_same_heads: whether both must have as many attention heads.
        batch_level: whether it compares examples with each other, within one micro-batch.
        relation_heads: heads of the statistic where they aren't the model's own.
        restore: fills padding after `unpack`, (statistic, keep) → statistic; zeros where None.
        projection_per_layer: whether each layer of the student gets a projection of its own.
        padding_counts: whether its value depends on how far a batch is padded.
    """

    name: str
    axes: tuple[Axis, ...]
    statistic: Callable[[Features, Keep], Tensor]
    compare: Callable[[Features, Keep, Tensor], Tensor]
    count: Callable[[Tensor, FeatureSizes], Tensor]
    features: tuple[Feature, ...] = ("hidden",)
    num_layers: int | None = 1
    needs_same_size: bool = False
    needs_same_heads: bool = False
    batch_level: bool = False
    relation_heads: int | None = None
    restore: Callable[[Tensor, Keep], Tensor] | None = None
    projection_per_layer: bool = False
    padding_counts: bool = False

    def teacher_statistic(self, teacher: Features, mask: Mask) -> Float[Tensor, "batch ..."]:
        """Reduce the teacher's features to what the loss needs of them.

        Args:
            teacher: one tensor per layer; the same object twice where both layers are one.
            mask: (B, L), real tokens; None where there is none.

        Returns:
            (B, *axes), padded like the batch, without a graph.
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
        if self.features:
            self._check_shape(student, statistic)
        # The student's precision decides, whatever the statistic was stored in.
        target = statistic.to(promoted(student[0]))
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
        return pack(statistic, mask, self.axes)

    def unpack(
        self, ragged: Ragged, mask: Mask, sizes: FeatureSizes, padded_length: int | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Pad rows for the batch that asks.

        Args:
            ragged: one row per example of the batch.
            mask: (B, L), the student's real tokens; None where there is none.
            sizes: the teacher's; the hidden size may be unknown.
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
        if sizes.hidden == UNKNOWN_SIZE:
            sizes = _inferred_sizes(ragged, places, self.axes, sizes)
        statistic = unpack(ragged, places, self.axes, self._own_heads(sizes))
        return statistic if self.restore is None else self.restore(statistic, keep)

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
