"""Content keys of examples, uint64 (N, 2): which rows are the same example."""

import numpy as np

__all__ = ["distinct_keys"]


def distinct_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the first row of each key.

    Args:
        keys: uint64 (N, 2).

    Returns:
        The first rows of the D distinct keys, int64 (D,), rising; and for each row the number of
        its key among them, int64 (N,): `keys[first][number]` are the keys.
    """
    if not len(keys):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order, begins = _grouped(keys)
    # The sort isn't stable, which would take longer: the first of a group is its least row.
    first_of_group = np.minimum.reduceat(order, np.flatnonzero(begins))
    is_first = np.zeros(len(keys), bool)
    is_first[first_of_group] = True
    number_of_group = (np.cumsum(is_first) - 1)[first_of_group]
    number = np.empty(len(keys), np.int64)
    number[order] = number_of_group[np.cumsum(begins) - 1]
    return np.flatnonzero(is_first), number


def _grouped(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an order in which equal keys are neighbours, and where in it another key begins."""
    order = np.argsort(np.ascontiguousarray(keys[:, 0]))
    other_half, other_key = _changes(keys, order)
    if (other_key & ~other_half).any():
        # Keys that share their first half, a hash of 64 bits: that takes billions of examples.
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        _, other_key = _changes(keys, order)
    return order, np.concatenate([[True], other_key])


def _changes(keys: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = keys[order, 0], keys[order, 1]
    other_half = first[1:] != first[:-1]
    return other_half, other_half | (second[1:] != second[:-1])
