"""Logits that the user has already: a column of the data that stands in for a teacher's model.

    classes of texts, numbers    a list of numbers in each row
    classes of words             a list of such lists in each row, one a word

The values are their own key: rows of equal values share a label, and rows that read the same to
the student may have different ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from raybrew.data.encoding import EncodedView
from raybrew.errors import DataError

__all__ = ["SuppliedLogits", "column_fingerprint", "read_supplied"]

_SHOWN = 80


@dataclass(frozen=True)
class SuppliedLogits:
    """The logits of N examples.

    Args:
        values: float32 (R, C), one example after another.
        lengths: int64 (N,), rows of `values` of each example; None for one each.
        keys: uint64 (N, 2), hashes of each example's values.
    """

    values: np.ndarray
    lengths: np.ndarray | None
    keys: np.ndarray

    def view(self) -> EncodedView:
        """Return the examples as labels are looked up for: keys, and no tokens to read."""
        offsets = np.zeros(len(self.keys) + 1, np.int64)
        return EncodedView(np.empty(0, np.int32), None, offsets, self.keys)


def read_supplied(
    column: Sequence[Any], width: int, words: Sequence[int] | None, *, name: str, what: str
) -> SuppliedLogits:
    """Check a column of logits.

    Args:
        column: of each row a list of numbers, a number where there is one class, or a list of
            those, one a word.
        width: classes.
        words: of each row, for classes of words; None where a row has one list.
        name: of the column, for messages.
        what: the job's field of the split, for messages.

    Raises:
        DataError: a row that holds something else; names it.
    """
    parts = []
    for row, value in enumerate(column):
        shape = (width,) if words is None else (words[row], width)
        numbers = _numbers(value, shape)
        if numbers is None:
            each = "" if words is None else f" for each of the {words[row]} words"
            shown = repr(value)
            shown = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"
            raise DataError(
                f"{what}: row {row}: expected {width} finite numbers in {name!r}{each}, the logits "
                f"of the task's classes, got {shown}"
            )
        parts.append(numbers)
    lengths = None if words is None else np.array(words, np.int64)
    return SuppliedLogits(
        np.concatenate([part.reshape(-1, width) for part in parts]), lengths, _keys(parts)
    )


def column_fingerprint(*sides: SuppliedLogits) -> str:
    """Return what labels of a column are filed under: a hash of all its values.

    Returns:
        32 hexadecimal digits.
    """
    digest = xxhash.xxh3_128(b"supplied logits")
    for side in sides:
        digest.update(np.int64(len(side.keys)).tobytes() + side.keys.astype("<u8").tobytes())
    return digest.hexdigest()


def _numbers(value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return a value as float32 of this shape; None if it is none."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return None
    if array.size and array.dtype.kind not in "fiu":
        return None
    one = shape == (1,) and array.shape == ()
    if array.shape != shape and not one and not array.size == 0 == shape[0]:
        return None
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32).reshape(shape)
    return numbers if np.isfinite(numbers).all() else None


def _keys(parts: Sequence[np.ndarray]) -> np.ndarray:
    keys = np.empty((len(parts), 2), np.uint64)
    for row, part in enumerate(parts):
        # The shape stands in front: two words of three classes are not three of two.
        shape = np.array((part.ndim, *part.shape), "<i8").tobytes()
        digest = xxhash.xxh3_128(shape + part.astype("<f4").tobytes())
        keys[row] = np.frombuffer(digest.digest(), np.uint64)
    return keys
