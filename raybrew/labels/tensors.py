"""Payloads as the objective takes them: tensors on the student's device."""

from dataclasses import replace

import torch
from torch import Tensor

from raybrew.labels.payload import Payload, Signal, from_storage
from raybrew.labels.top_k import unpack_top_k
from raybrew.losses.features import Ragged
from raybrew.losses.soft import TopK

__all__ = ["SoftLabel", "as_ragged", "tensors_of"]

SoftLabel = Tensor | Ragged | TopK
"""Values of n examples: (n, width), ragged rows, or top-k logits."""


def tensors_of(payload: Payload, signal: Signal, device: torch.device) -> SoftLabel:
    """Bring a payload to a device, in the precision that it is kept in."""
    if signal.top_k is not None:
        return _moved(unpack_top_k(payload.values, signal), device)
    values = from_storage(payload.values, signal.dtype).to(device, non_blocking=True)
    if payload.offsets is None:
        return values
    return Ragged(values, torch.from_numpy(payload.offsets).to(device, non_blocking=True))


def as_ragged(label: SoftLabel) -> Ragged:
    """See rows of one width as ragged ones."""
    if isinstance(label, Ragged):
        return label
    assert isinstance(label, Tensor), "top-k logits are no statistic of a match"
    rows, width = label.shape
    offsets = torch.arange(rows + 1, device=label.device) * width
    return Ragged(label.reshape(-1), offsets)


def _moved(top_k: TopK, device: torch.device) -> TopK:
    sums = top_k.logsumexp
    assert not isinstance(sums, Tensor)
    return replace(
        top_k,
        values=top_k.values.to(device),
        indices=top_k.indices.to(device),
        logsumexp={t: one.to(device) for t, one in sums.items()},
    )
