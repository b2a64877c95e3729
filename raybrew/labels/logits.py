"""Logits as payloads, all or the k largest, and payloads as the tensors of the objective.

    logits ──► block of rows ──► label's precision ──► all finite? ──► k largest, logsumexp ──► host

Only a block of rows exists in float32, and only what is stored leaves the device. A payload has one
row an example, or one for each of its real tokens. A row of top-k logits is

    [k values, label dtype | k classes, int32 | one logsumexp for each temperature, float32]

all in one array of the label dtype, the last two bit by bit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raybrew.data.encoding import offsets_of
from raybrew.data.payload import DTYPES, Payload, Signal, from_storage, to_storage, torch_dtype
from raybrew.errors import LabelError
from raybrew.losses.match_loss import Ragged
from raybrew.losses.numerics import TopK
from raybrew.tasks.task_type import Layout

_BLOCK_LOGITS = 1 << 21
"""Logits of a block, 8 MiB in float32."""

_DIMS = {"example": 2, "token": 3, "position": 2}
_SHAPES = {
    "example": "(examples, classes)",
    "token": "(examples, tokens, classes)",
    "position": "(examples, tokens)",
}


def top_k_width(signal: Signal) -> int:
    """Return the entries of a row of top-k logits."""
    assert signal.top_k is not None
    per_word = 4 // DTYPES[signal.dtype].itemsize
    return signal.top_k + per_word * (signal.top_k + len(signal.temperatures))


def unpack_top_k(values: np.ndarray, signal: Signal) -> TopK:
    """Read rows of top-k logits, (b, width)."""
    assert signal.top_k is not None
    k, per_word = signal.top_k, 4 // values.dtype.itemsize
    classes = np.ascontiguousarray(values[:, k : k + k * per_word]).view(np.int32)
    sums = np.ascontiguousarray(values[:, k + k * per_word :]).view(np.float32)
    return TopK(
        values=from_storage(np.ascontiguousarray(values[:, :k]), signal.dtype).float(),
        indices=torch.from_numpy(classes.astype(np.int64)),
        logsumexp={
            t: torch.from_numpy(np.ascontiguousarray(sums[:, i]))
            for i, t in enumerate(signal.temperatures)
        },
    )


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
    """View a payload as tensors that share its memory, in the precision that it is stored in."""
    if signal.top_k is None:
        values, offsets = from_storage(payload.values, signal.dtype), payload.offsets
        return values if offsets is None else Ragged(values, torch.from_numpy(offsets))
    if payload.offsets is None:
        return unpack_top_k(payload.values, signal)
    width = top_k_width(signal)
    top_k = unpack_top_k(payload.values.reshape(-1, width), signal)
    return TokenTopK(top_k, torch.from_numpy(payload.offsets // width))


def as_ragged(label: SoftLabel) -> Ragged:
    """View rows of one width as ragged ones."""
    if isinstance(label, Ragged):
        return label
    assert isinstance(label, Tensor), "top-k logits are no statistic of a match"
    rows, width = label.shape
    offsets = torch.arange(rows + 1, device=label.device) * width
    return Ragged(label.reshape(-1), offsets)


def pack_logits(
    logits: tuple[Tensor, ...], mask: Tensor | None, layout: Layout, signal: Signal
) -> tuple[Payload, int | None]:
    """Lay the logits of all outputs side by side, and leave the padding out.

    Args:
        logits: of each output, (b, C), (b, L, C) or (b, L) by layout.
        mask: (b, L), real tokens.
        layout: of the logits.
        signal: the precision, and how many of the largest are stored.

    Returns:
        What is stored, and the first example with a logit that is NaN or infinite in the precision
        of the label, whether it is stored or not; None where there is none.

    Raises:
        LabelError: logits of another shape.
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
    """Pack rows of logits; see `pack_logits`.

    Args:
        rows: (R, C), one example after another.
        lengths: int64 (n,), rows of each example; None for one each.
        signal: the precision, and how many of the largest are stored.
    """
    values, finite = _packed(lambda block: rows[block], len(rows), rows.shape[-1], signal)
    return _as_payload(values, finite, lengths)


def _side_by_side(logits: tuple[Tensor, ...]) -> Tensor:
    # The one output of a language model isn't copied.
    return logits[0] if len(logits) == 1 else torch.cat(logits, dim=-1)


def _packed(
    take: Callable[[slice], Tensor], num_rows: int, num_classes: int, signal: Signal
) -> tuple[np.ndarray, np.ndarray]:
    """Pack rows block by block.

    Returns:
        What is stored, (num_rows, width), and whether all logits of a row are finite, (num_rows,).
    """
    dtype, storage = torch_dtype(signal.dtype), DTYPES[signal.dtype]
    device = take(slice(0)).device
    finite = torch.empty(num_rows, dtype=torch.bool, device=device)
    # Allocated at once: small results between large temporary ones would fragment the heap.
    if signal.top_k is None:
        parts = [torch.empty(num_rows, num_classes, dtype=dtype)]
    else:
        parts = [
            torch.empty(num_rows, signal.top_k, dtype=dtype, device=device),
            torch.empty(num_rows, signal.top_k, dtype=torch.int32, device=device),
            torch.empty(num_rows, len(signal.temperatures), device=device),
        ]
    size = max(1, _BLOCK_LOGITS // max(num_classes, 1))
    for start in range(0, num_rows, size):
        block = slice(start, start + size)
        stored = take(block).to(dtype)
        low, high = stored.aminmax(dim=-1)  # both are NaN where one logit is
        finite[block] = low.isfinite() & high.isfinite()
        for part, reduced in zip(parts, _reduced(stored, signal), strict=True):
            part[block] = reduced
    values = to_storage(parts[0], signal.dtype)
    if len(parts) > 1:
        words = [part.cpu().numpy().view(storage) for part in parts[1:]]
        values = np.concatenate([values, *words], axis=1)
    return values, finite.cpu().numpy()


def _reduced(stored: Tensor, signal: Signal) -> tuple[Tensor, ...]:
    """Return what is stored of rows of logits.

    Args:
        stored: (b, C), in the label's precision: the tail's mass is a difference, which rounding
            afterwards would move.
        signal: k and the temperatures.

    Returns:
        All logits; or the k largest, (b, k), their classes, int32 (b, k), and the logsumexp at each
        temperature, float32 (b, temperatures).
    """
    if signal.top_k is None:
        return (stored,)
    logits = stored.float()
    values, classes = logits.topk(signal.top_k, dim=-1)
    sums = [torch.logsumexp(logits / each, dim=-1) for each in signal.temperatures]
    return values, classes, torch.stack(sums, -1) if sums else logits.new_empty(len(logits), 0)


def _as_payload(
    values: np.ndarray, finite: np.ndarray, lengths: np.ndarray | None
) -> tuple[Payload, int | None]:
    unusable = None if finite.all() else int(finite.argmin())
    if lengths is None:
        return Payload(values), unusable
    if unusable is not None:
        unusable = int(np.searchsorted(np.cumsum(lengths), unusable, side="right"))
    return Payload(values.reshape(-1), offsets_of(lengths * values.shape[1])), unusable
