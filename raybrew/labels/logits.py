"""A teacher's logits as a payload: one row an example, or one for each of its real tokens."""

import numpy as np
import torch
from torch import Tensor

from raybrew.errors import LabelError
from raybrew.kinds import Layout
from raybrew.labels.payload import Payload, Signal, to_storage
from raybrew.labels.top_k import pack_top_k

__all__ = ["pack_logits", "pack_rows"]

_DIMS = {"example": 2, "token": 3, "position": 2}
_SHAPES = {
    "example": "(examples, classes)",
    "token": "(examples, tokens, classes)",
    "position": "(examples, tokens)",
}


def pack_logits(
    logits: tuple[Tensor, ...], mask: Tensor | None, layout: Layout, signal: Signal
) -> tuple[Payload, Payload]:
    """Lay the logits of all outputs side by side, and leave the padding out.

    Args:
        logits: of each output, (b, C), (b, L, C) or (b, L) by layout.
        mask: (b, L), real tokens.
        layout: of the logits.
        signal: the precision, and how many of the largest are kept.

    Returns:
        What is kept, and all logits, in which numbers that can't be used are still to be seen.

    Raises:
        LabelError: logits of another form.
    """
    wrong = any(each.dim() != _DIMS[layout] for each in logits)
    if not logits or wrong or (signal.top_k is not None and len(logits) > 1):
        found = ", ".join(str(tuple(each.shape)) for each in logits) or "none"
        raise LabelError(
            f"expected an adaptor that gives logits {_SHAPES[layout]}"
            f"{', one tensor since top_k is set' if signal.top_k is not None else ''}, got {found}"
        )
    if layout == "example":
        rows = torch.cat([each.float() for each in logits], dim=-1)
        return pack_rows(rows, None, signal)
    assert mask is not None, "tokens are counted by the mask"
    keep = mask != 0
    tokens = torch.stack(logits, -1) if layout == "position" else torch.cat(logits, -1)
    lengths = keep.sum(dim=1).cpu().numpy()
    return pack_rows(tokens[keep].float(), lengths, signal)


def pack_rows(rows: Tensor, lengths: np.ndarray | None, signal: Signal) -> tuple[Payload, Payload]:
    """Keep rows of logits; see `pack_logits`.

    Args:
        rows: float32 (R, C), one example after another.
        lengths: int64 (n,), rows of each example; None for one each.
        signal: the precision, and how many of the largest are kept.
    """
    whole = _as_payload(to_storage(rows, signal.dtype), lengths)
    if signal.top_k is None:
        return whole, whole
    return _as_payload(pack_top_k(rows, signal).values, lengths), whole


def _as_payload(values: np.ndarray, lengths: np.ndarray | None) -> Payload:
    if lengths is None:
        return Payload(values)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths * values.shape[1], out=offsets[1:])
    return Payload(values.reshape(-1), offsets)
