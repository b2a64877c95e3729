"""A teacher's logits as a payload: one row an example, or one for each of its real tokens.

    logits ──► block of rows ──► label's precision ──► all finite? ──► k largest, logsumexp ──► host

Only a block of rows exists in float32, and only what is kept leaves the device.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from raybrew.errors import LabelError
from raybrew.kinds import Layout
from raybrew.labels.payload import DTYPES, Payload, Signal, to_storage
from raybrew.labels.top_k import LargestLogits

__all__ = ["pack_logits", "pack_rows"]

_BLOCK_LOGITS = 1 << 22
"""Logits of a block, 16 MiB in float32."""

_DIMS = {"example": 2, "token": 3, "position": 2}
_SHAPES = {
    "example": "(examples, classes)",
    "token": "(examples, tokens, classes)",
    "position": "(examples, tokens)",
}


def pack_logits(
    logits: tuple[Tensor, ...], mask: Tensor | None, layout: Layout, signal: Signal
) -> tuple[Payload, int | None]:
    """Lay the logits of all outputs side by side, and leave the padding out.

    Args:
        logits: of each output, (b, C), (b, L, C) or (b, L) by layout.
        mask: (b, L), real tokens.
        layout: of the logits.
        signal: the precision, and how many of the largest are kept.

    Returns:
        What is kept, and the first example with a logit that is NaN or infinite in the precision
        of the label, whether it is kept or not; None where there is none.

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
        return pack_rows(_side_by_side(logits), None, signal)
    assert mask is not None, "tokens are counted by the mask"
    tokens = torch.stack(logits, -1) if layout == "position" else _side_by_side(logits)
    example, token = (mask != 0).nonzero(as_tuple=True)
    values, finite = _packed(
        lambda block: tokens[example[block], token[block]], len(example), tokens.shape[-1], signal
    )
    return _as_payload(values, finite, (mask != 0).sum(dim=1).cpu().numpy())


def pack_rows(
    rows: Tensor, lengths: np.ndarray | None, signal: Signal
) -> tuple[Payload, int | None]:
    """Keep rows of logits; see `pack_logits`.

    Args:
        rows: (R, C), one example after another.
        lengths: int64 (n,), rows of each example; None for one each.
        signal: the precision, and how many of the largest are kept.
    """
    values, finite = _packed(lambda block: rows[block], len(rows), rows.shape[-1], signal)
    return _as_payload(values, finite, lengths)


def _side_by_side(logits: tuple[Tensor, ...]) -> Tensor:
    # The one output of a language model isn't copied.
    return logits[0] if len(logits) == 1 else torch.cat(logits, dim=-1)


def _packed(
    take: Callable[[slice], Tensor], num_rows: int, num_classes: int, signal: Signal
) -> tuple[np.ndarray, np.ndarray]:
    """Keep rows block by block.

    Returns:
        What is kept, (num_rows, width), and whether all logits of a row are finite, (num_rows,).
    """
    dtype = DTYPES[signal.dtype][0]
    device = take(slice(0)).device
    finite = torch.empty(num_rows, dtype=torch.bool, device=device)
    largest = LargestLogits(num_rows, signal, device) if signal.top_k else None
    dense = torch.empty(0 if largest else num_rows, num_classes, dtype=dtype)
    size = max(1, _BLOCK_LOGITS // max(num_classes, 1))
    for start in range(0, num_rows, size):
        block = slice(start, start + size)
        stored = take(block).to(dtype)
        low, high = stored.aminmax(dim=-1)  # both are NaN where one logit is
        finite[block] = low.isfinite() & high.isfinite()
        if largest is None:
            dense[block] = stored
        else:
            largest.put(block, stored)
    values = to_storage(dense, signal.dtype) if largest is None else largest.to_storage()
    return values, finite.cpu().numpy()


def _as_payload(
    values: np.ndarray, finite: np.ndarray, lengths: np.ndarray | None
) -> tuple[Payload, int | None]:
    unusable = None if finite.all() else int(finite.argmin())
    if lengths is None:
        return Payload(values), unusable
    ends = np.cumsum(lengths)
    if unusable is not None:
        unusable = int(np.searchsorted(ends, unusable, side="right"))
    offsets = np.concatenate([[0], ends * values.shape[1]]).astype(np.int64)
    return Payload(values.reshape(-1), offsets), unusable
