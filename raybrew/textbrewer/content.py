"""Keys of the examples of a batch: hashes of what the teacher is given of each.

The order of the examples, and who else is in the batch, are not part of it. Where nobody looks at
the padding, neither is that: an example has one key however far its batch is padded.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from raybrew.errors import DataError
from raybrew.textbrewer.batch import fields, has_rows

_PLAIN = (bool, int, float, str, type(None))


def padding_mask(batch: Any, size: int) -> Tensor | None:
    """Return the mask of real tokens that a batch carries for its model, (B, L), if it has one."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    there = isinstance(mask, Tensor) and mask.dim() == 2 and has_rows(mask, size)
    return mask if there else None


def real_lengths(mask: Tensor) -> np.ndarray:
    """Return up to where each row, (B, L), has real tokens, int64 (B,)."""
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return ((mask != 0) * places).amax(dim=1).cpu().numpy()


def content_keys(batch: Any, size: int, mask: Tensor | None = None) -> np.ndarray:
    """Hash what a batch holds of each example.

    Args:
        batch: on any device.
        size: its examples.
        mask: (B, L), real tokens; what lies behind the last of them is left out of every field
            that has L places. None where the padding counts.

    Returns:
        uint64 (B, 2).

    Raises:
        DataError: a field that says nothing of its content.
    """
    digests = [xxhash.xxh3_128() for _ in range(size)]
    lengths = None if mask is None else real_lengths(mask)
    width = 0 if mask is None else mask.shape[1]
    for name, value in fields(batch):
        if isinstance(value, Tensor):
            _update(digests, name, value, lengths, width)
        elif isinstance(value, _PLAIN):
            for digest in digests:
                digest.update(f"{name}={value!r}".encode())
        else:
            raise DataError(
                f"is_caching_logits: labels are kept by the content of a batch, expected tensors "
                f"or plain values in it, got a {type(value).__name__} at {name.lstrip('.')!r}; "
                "leave it out with a batch_postprocessor, or set is_caching_logits to False"
            )
    words = b"".join(digest.digest() for digest in digests)
    return np.frombuffer(words, np.uint64).reshape(size, 2)


def _update(
    digests: list[Any], name: str, value: Tensor, lengths: np.ndarray | None, width: int
) -> None:
    size = len(digests)
    if not has_rows(value, size):
        whole = _bytes(value.reshape(1, -1))[0].tobytes()
        for digest in digests:
            digest.update(f"{name}:{value.dtype}{tuple(value.shape)}".encode() + whole)
        return
    rows = _bytes(value.reshape(size, -1))
    is_cut = lengths is not None and value.dim() > 1 and value.shape[1] == width
    shape = value.shape[2:] if is_cut else value.shape[1:]
    header = f"{name}:{value.dtype}{tuple(shape)}".encode()
    for number, digest in enumerate(digests):
        row = rows[number]
        if is_cut and lengths is not None:
            row = row[: int(lengths[number]) * (rows.shape[1] // width)]
        digest.update(header)
        digest.update(row.tobytes())


def _bytes(rows: Tensor) -> np.ndarray:
    return rows.detach().cpu().contiguous().view(torch.uint8).numpy()
