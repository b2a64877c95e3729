"""Payloads as the objective takes them: tensors, in host memory until the student's step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from raybrew.labels.payload import Payload, Signal, from_storage
from raybrew.labels.top_k import top_k_width, unpack_top_k
from raybrew.losses.features import Ragged
from raybrew.losses.soft import TopK

__all__ = ["SoftLabel", "TokenTopK", "as_ragged", "tensors_of"]


@dataclass(frozen=True, eq=False)
class TokenTopK:
    """Top-k logits of the tokens of n examples, one example after another.

    Args:
        top_k: of T tokens.
        offsets: int64 (n + 1,), in tokens.
    """

    top_k: TopK
    offsets: Tensor


SoftLabel = Tensor | Ragged | TopK | TokenTopK
"""Values of n examples: (n, width), ragged rows, or top-k logits."""


def tensors_of(payload: Payload, signal: Signal) -> SoftLabel:
    """See a payload as tensors that share its memory, in the precision that it is kept in."""
    if signal.top_k is not None:
        return _top_k_of(payload, signal)
    values = from_storage(payload.values, signal.dtype)
    return values if payload.offsets is None else Ragged(values, torch.from_numpy(payload.offsets))


def as_ragged(label: SoftLabel) -> Ragged:
    """See rows of one width as ragged ones."""
    if isinstance(label, Ragged):
        return label
    assert isinstance(label, Tensor), "top-k logits are no statistic of a match"
    rows, width = label.shape
    offsets = torch.arange(rows + 1, device=label.device) * width
    return Ragged(label.reshape(-1), offsets)


def _top_k_of(payload: Payload, signal: Signal) -> TopK | TokenTopK:
    if payload.offsets is None:
        return unpack_top_k(payload.values, signal)
    width = top_k_width(signal)
    top_k = unpack_top_k(payload.values.reshape(-1, width), signal)
    return TokenTopK(top_k, torch.from_numpy(payload.offsets // width))
