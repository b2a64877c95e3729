"""Top-k logits as one row of numbers: the k largest, their classes, the logsumexp of all.

    [k values, label dtype | k classes, int32 | one logsumexp for each temperature, float32]

All three lie in one array of the label dtype, the last two bit by bit.
"""

import numpy as np
import torch
from torch import Tensor

from raybrew.labels.payload import DTYPES, Signal, from_storage, to_storage
from raybrew.losses.soft import TopK

__all__ = ["LargestLogits", "top_k_width", "unpack_top_k"]


class LargestLogits:
    """The largest logits of N rows, where the logits are; filled block by block.

    Args:
        num_rows: N.
        signal: k, the temperatures and the label dtype.
        device: of the logits.
    """

    def __init__(self, num_rows: int, signal: Signal, device: torch.device):
        assert signal.top_k is not None
        self._signal = signal
        dtype, shape = DTYPES[signal.dtype][0], (num_rows, signal.top_k)
        # Made at once: small results between large temporary ones would break the heap up.
        self._values = torch.empty(shape, dtype=dtype, device=device)
        self._classes = torch.empty(shape, dtype=torch.int32, device=device)
        self._sums = torch.empty(num_rows, len(signal.temperatures), device=device)

    def put(self, rows: slice, stored: Tensor) -> None:
        """Reduce rows to their largest logits.

        Args:
            rows: which.
            stored: (b, C), in the label's precision: the tail's mass is a difference, which
                rounding afterwards would move.
        """
        logits = stored.float()
        values, classes = logits.topk(self._values.shape[1], dim=-1)
        self._values[rows], self._classes[rows] = values, classes
        for number, temperature in enumerate(self._signal.temperatures):
            self._sums[rows, number] = torch.logsumexp(logits / temperature, dim=-1)

    def to_storage(self) -> np.ndarray:
        """Bring the rows to the host as they are kept, (N, top_k_width)."""
        storage = DTYPES[self._signal.dtype][1]
        words = [each.cpu().numpy().view(storage) for each in (self._classes, self._sums)]
        return np.concatenate([to_storage(self._values, self._signal.dtype), *words], axis=1)


def top_k_width(signal: Signal) -> int:
    """Return the entries of a row of `LargestLogits.to_storage`."""
    assert signal.top_k is not None
    per_word = 4 // DTYPES[signal.dtype][1].itemsize
    return signal.top_k + per_word * (signal.top_k + len(signal.temperatures))


def unpack_top_k(values: np.ndarray, signal: Signal) -> TopK:
    """Read rows of `LargestLogits.to_storage`, (b, width)."""
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
