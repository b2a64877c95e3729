"""Top-k logits as one row of numbers: the k largest, their classes, the logsumexp of all.

    [k values, label dtype | k classes, int32 | one logsumexp for each temperature, float32]

All three lie in one array of the label dtype, the last two bit by bit.
"""

import numpy as np
import torch
from torch import Tensor

from raybrew.labels.payload import DTYPES, Payload, Signal, from_storage, to_storage
from raybrew.losses.soft import TopK

__all__ = ["pack_top_k", "top_k_width", "unpack_top_k"]


def pack_top_k(logits: Tensor, signal: Signal) -> Payload:
    """Keep the largest logits.

    Args:
        logits: (b, C), raw.
        signal: k, the temperatures and the label dtype.

    Returns:
        Rows of one width. The logsumexp is that of the logits as they are stored.
    """
    assert signal.top_k is not None
    stored = logits.to(DTYPES[signal.dtype][0]).float()
    values, classes = stored.topk(signal.top_k, dim=-1)
    sums = [torch.logsumexp(stored / t, dim=-1) for t in signal.temperatures]
    storage = DTYPES[signal.dtype][1]
    parts = [
        to_storage(values, signal.dtype),
        classes.to("cpu", torch.int32).numpy().view(storage),
        torch.stack(sums, dim=-1).cpu().numpy().view(storage),
    ]
    return Payload(np.concatenate(parts, axis=1))


def top_k_width(signal: Signal) -> int:
    """Return the entries of a row of `pack_top_k`."""
    assert signal.top_k is not None
    per_word = 4 // DTYPES[signal.dtype][1].itemsize
    return signal.top_k + per_word * (signal.top_k + len(signal.temperatures))


def unpack_top_k(values: np.ndarray, signal: Signal) -> TopK:
    """Read rows of `pack_top_k`, (b, width)."""
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
