"""Tensor steps that the match losses share: precision, real tokens, unit vectors."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "Keep",
    "compute_dtype",
    "full_precision",
    "pair_mask",
    "stacked_layers",
    "unit",
    "widen",
    "zero_padding",
]

Keep: TypeAlias = Bool[Tensor, "batch length"] | None
"""Which tokens are real; None where the adaptor gives no mask."""

_HALF = (torch.float16, torch.bfloat16)


def compute_dtype(values: Float[Tensor, "*shape"]) -> torch.dtype:
    """Float32 for half precision; float32 and float64 stay."""
    return torch.float32 if values.dtype in _HALF else values.dtype


def widen(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision becomes float32; float32 and float64 stay."""
    return values.to(compute_dtype(values))


def full_precision(values: Tensor) -> torch.autocast:
    """Hold autocast off: a matrix product of differences mustn't fall back to half."""
    return torch.autocast(device_type=values.device.type, enabled=False)


def unit(vectors: Float[Tensor, "*rows size"]) -> Float[Tensor, "*rows size"]:
    """Divide each vector by its L2 norm; a zero vector stays zero and gets no gradient.

    u = v / ‖v‖. Dividing first by the largest entry, held constant, leaves u and its gradient
    as they are and keeps the squares within range.

    Args:
        vectors: any leading axes, in any unit.

    Returns:
        Vectors of length 1, or 0 where the norm is below the square root of the smallest number.
    """
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True)
    is_zero = largest < torch.finfo(vectors.dtype).tiny ** 0.5
    scaled = vectors / largest.masked_fill(is_zero, 1.0)
    # A zero vector has norm 1 here, so that sqrt is never differentiated at 0.
    squared_norm = scaled.square().sum(dim=-1, keepdim=True).masked_fill(is_zero, 1.0)
    return torch.where(is_zero, torch.zeros_like(scaled), scaled / squared_norm.sqrt())


def zero_padding(
    states: Float[Tensor, "batch length hidden"], keep: Keep
) -> Float[Tensor, "batch length hidden"]:
    """Zero the vectors of padding, and their gradient.

    They have to be finite, as a model's hidden states are. A product takes a tenth of the time
    of a masked fill here, whose mask is broadcast along the innermost axis.
    """
    return states if keep is None else states * keep.unsqueeze(-1).to(states.dtype)


def stacked_layers(
    features: Sequence[Float[Tensor, "batch ..."]], keep: Keep
) -> Float[Tensor, "batch layers ..."]:
    """Return all layers of a match in one tensor: the statistic of a loss of many layers."""
    return torch.stack(list(features), dim=1)


def pair_mask(keep: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch length length"]:
    """Pairs of which both tokens are real."""
    return keep.unsqueeze(-1) & keep.unsqueeze(-2)
