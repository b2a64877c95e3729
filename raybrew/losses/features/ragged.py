"""Padded batch ⇄ ragged rows: what a store keeps of a statistic is its real tokens alone.

    padded (B, A, L, L) ──pack(keep)──► values, flat   [ex. 0: A·n₀·n₀ | ex. 1: A·n₁·n₁ | …]
                        ◄─unpack(keep)─ offsets (B+1,) [0, A·n₀², A·n₀²+A·n₁², …]

Real tokens keep their order, so an example's row says nothing of how its batch was padded, and
it can be put back under another padding, also when the mask has holes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from raybrew.errors import LabelError

__all__ = ["Axis", "FeatureSizes", "Ragged", "join", "pack", "row_shape", "split", "unpack"]

Axis = Literal["layer", "head", "token", "hidden"]


@dataclass(frozen=True)
class FeatureSizes:
    """The static sizes a statistic has beside its number of tokens.

    Attributes:
        hidden: entries of one token's vector at the teacher (after projection, at the student).
        heads: attention heads.
        layers: distinct layers that go into the statistic.
    """

    hidden: int
    heads: int = 1
    layers: int = 1


class Ragged(NamedTuple):
    """Rows of different lengths, one after another."""

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


def pack(
    padded: Shaped[Tensor, "batch ..."],
    keep: Bool[Tensor, "batch length"],
    axes: tuple[Axis, ...],
) -> Ragged:
    """Leave the padding out.

    Args:
        padded: statistics of a batch.
        keep: which tokens are real.
        axes: what each axis after the first is.

    Returns:
        The real entries, row after row, and where each row starts.
    """
    num_token_axes = axes.count("token")
    if num_token_axes == 0:
        values = padded.reshape(-1)
        row_sizes = torch.full_like(keep[:, 0], padded[0].numel(), dtype=torch.int64)
    else:
        values = padded[_selection(keep, axes, padded.shape[1:])].reshape(-1)
        static = _product(s for a, s in zip(axes, padded.shape[1:], strict=True) if a != "token")
        row_sizes = keep.sum(dim=1) ** num_token_axes * static
    return Ragged(values, _offsets(row_sizes))


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
    static = _product(size for axis, size in zip(axes, shape, strict=True) if axis != "token")
    _check_row_sizes(ragged.offsets, keep.sum(dim=1), num_token_axes, static)
    if num_token_axes == 0:
        return ragged.values.view(keep.shape[0], *shape)
    padded = ragged.values.new_zeros(keep.shape[0], *shape)
    selection = _selection(keep, axes, shape)
    padded[selection] = ragged.values.view(-1, *padded.shape[selection.dim() :])
    return padded


def split(ragged: Ragged) -> list[Shaped[Tensor, " _"]]:
    """Give one flat view per example."""
    return list(ragged.values.split(ragged.offsets.diff().tolist()))


def join(rows: Sequence[Shaped[Tensor, " _"]]) -> Ragged:
    """Lay flat rows one after another."""
    return Ragged(torch.cat(list(rows)), _offsets(torch.tensor([row.numel() for row in rows])))


def _offsets(row_sizes: Tensor) -> Tensor:
    return torch.nn.functional.pad(row_sizes.cumsum(dim=0), (1, 0))


def _product(factors) -> int:
    result = 1
    for factor in factors:
        result *= int(factor)
    return result


def _selection(keep: Tensor, axes: tuple[Axis, ...], shape: Sequence[int]) -> Tensor:
    """Which rows are real; it stops at the last token axis, so whole vectors move at once."""
    depth = max(i for i, axis in enumerate(axes) if axis == "token") + 1
    selection = keep.new_ones(keep.shape[0], *shape[:depth])
    for i, axis in enumerate(axes[:depth]):
        if axis == "token":
            others_before, others_after = (1,) * i, (1,) * (depth - i - 1)
            selection &= keep.view(keep.shape[0], *others_before, -1, *others_after)
    return selection


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
