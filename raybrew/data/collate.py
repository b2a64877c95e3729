"""Batches of tensors out of ragged examples."""

import numpy as np
import torch
from torch import Tensor

from raybrew.data.encoding import EncodedView
from raybrew.data.padding import Padding
from raybrew.data.spans import spans
from raybrew.data.split import IGNORED, EncodedSplit

__all__ = ["collate", "collate_labels", "collate_tokens"]


def collate(
    view: EncodedView, rows: np.ndarray, padding: Padding, pad_to: int | None = None
) -> dict[str, Tensor]:
    """Put examples into one batch, padded to the longest.

    Args:
        view: the examples.
        rows: which, int64 (b,), in the order of the batch; may be empty.
        padding: what shorter examples are filled up with, and where.
        pad_to: pad to at least this length.

    Returns:
        `input_ids`, `attention_mask` (1 = real token) and, where the tokenizer makes them,
        `token_type_ids`, each int64 (b, L); (0, 1) without rows.
    """
    taken = view.take(rows)
    lengths = taken.lengths
    length = max(int(lengths.max(initial=0)), pad_to or 0, 1)
    mask = np.arange(length) < lengths[:, None]
    if padding.side == "left":
        mask = np.ascontiguousarray(mask[:, ::-1])
    ids = np.full(mask.shape, padding.token_id, np.int64)
    ids[mask] = taken.input_ids
    batch = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
    }
    if taken.token_type_ids is not None:
        types = np.zeros(mask.shape, np.int64)
        types[mask] = taken.token_type_ids
        batch["token_type_ids"] = torch.from_numpy(types)
    return batch


def collate_labels(split: EncodedSplit, rows: np.ndarray, length: int) -> Tensor:
    """Put the labels of examples into one batch.

    Args:
        split: the examples.
        rows: which, int64 (b,).
        length: tokens that the batch's inputs are padded to.

    Returns:
        (b, …), or int64 (b, length) where there is a label for each token.
    """
    if not split.per_token:
        return torch.from_numpy(split.labels[rows])
    return collate_tokens(split, split.labels, rows, length, IGNORED)


def collate_tokens(
    split: EncodedSplit, values: np.ndarray, rows: np.ndarray, length: int, fill: int
) -> Tensor:
    """Pad what there is for each of the student's tokens on the right, int64 (b, length, …)."""
    source, offsets = spans(split.student.offsets, rows)
    mask = np.arange(length) < np.diff(offsets)[:, None]
    padded = np.full((*mask.shape, *values.shape[1:]), fill, np.int64)
    padded[mask] = values[source]
    return torch.from_numpy(padded)
