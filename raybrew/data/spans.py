"""Ragged rows in flat arrays: row i owns `[offsets[i], offsets[i + 1])`."""

import numpy as np

__all__ = ["spans"]


def spans(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where in the flat array the elements of some rows are, and the rows' new offsets.

    Args:
        offsets: int64 (N + 1,).
        rows: int64 (n,), in any order, also twice.

    Returns:
        int64 (elements,) and int64 (n + 1,).
    """
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    taken = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=taken[1:])
    return np.repeat(starts - taken[:-1], lengths) + np.arange(taken[-1]), taken
