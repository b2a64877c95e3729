"""Signals (what is asked of a teacher) and payloads (its values, row by row).

A signal names a teacher statistic (`logits`, or what a match loss needs), the layers that it is
read from and the precision that it is stored in. A payload holds one flat run of values an example:
all of one width (logits), or ragged (anything that grows with the number of tokens).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from raybrew.data.encoding import offsets_of
from raybrew.errors import LabelError

if TYPE_CHECKING:
    # Takes seconds to import, which `raybrew store` has no need to spend.
    import torch
    from torch import Tensor

DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    # NumPy has no bfloat16: its bits travel as int16.
    "bfloat16": np.dtype(np.int16),
}
"""By the name of a precision of PyTorch, that of NumPy whose bits hold it."""

_NAME_BYTES = 200


@dataclass(frozen=True)
class Signal:
    """What is asked of a teacher for each example.

    Args:
        statistic: `logits`, or what a match loss or a custom match takes of the teacher.
        layers: layers that it is read from, 0 = embeddings; empty for `logits` and modules.
        dtype: precision that it is stored in, a key of `DTYPES`.
        top_k: of logits, how many of the largest are stored; None for all.
        temperatures: of top-k logits, those whose logsumexp is stored.
        recipe: the match that says how the teacher computes it; none for logits. Two matches that
            take the same statistic have equal signals, so this is not compared.
    """

    statistic: str = "logits"
    layers: tuple[int, ...] = ()
    dtype: str = "float32"
    top_k: int | None = None
    temperatures: tuple[float, ...] = ()
    recipe: Any = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Name of the signal's folder in the store."""
        layers = "".join(f"-L{layer}" for layer in self.layers)
        top_k = "" if self.top_k is None else f"-top{self.top_k}"
        top_k += "".join(f"-T{temperature:g}" for temperature in self.temperatures)
        name = f"{self.statistic}{layers}{top_k}-{self.dtype}"
        if len(name.encode()) <= _NAME_BYTES:
            return name
        # Longer than a folder's name may be: a readable beginning, and a hash of it all.
        start = name.encode()[: _NAME_BYTES // 2].decode(errors="ignore")
        return f"{start}-{xxhash.xxh3_128_hexdigest(name.encode())}-{self.dtype}"


@dataclass(frozen=True)
class Payload:
    """Values of n examples.

    Args:
        values: storage dtype, (n, width) when `offsets` is None, else flat (total,).
        offsets: int64 (n + 1,): example i owns `values[offsets[i]:offsets[i + 1]]`.
    """

    values: np.ndarray
    offsets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of the values and their offsets."""
        return self.values.nbytes + (0 if self.offsets is None else self.offsets.nbytes)

    def take(self, rows: np.ndarray) -> "Payload":
        """Return these rows, in this order, as a copy."""
        return Payload.gather([self], np.zeros(len(rows), np.int64), rows)

    @staticmethod
    def gather(parts: Sequence["Payload"], part: np.ndarray, rows: np.ndarray) -> "Payload":
        """Return rows of several payloads of one signal, each copied once.

        Args:
            parts: the payloads.
            part: which of them each row is of, int64 (n,).
            rows: the rows, int64 (n,).
        """
        first = parts[part[0]] if len(part) else parts[0]
        if first.offsets is not None:
            return _gather_ragged(parts, part, rows, first.values.dtype)
        used = np.unique(part)
        if len(used) <= 1:
            return Payload(first.values[rows])
        values = np.empty((len(rows), *first.values.shape[1:]), first.values.dtype)
        for number in used:
            mine = np.flatnonzero(part == number)
            values[mine] = parts[number].values[rows[mine]]
        return Payload(values)

    def slice(self, start: int, stop: int) -> "Payload":
        """Return neighbouring rows without copying."""
        if self.offsets is None:
            return Payload(self.values[start:stop])
        offsets = self.offsets[start : stop + 1]
        return Payload(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    @staticmethod
    def concat(parts: Sequence["Payload"]) -> "Payload":
        """Join payloads of one signal, in order."""
        if len(parts) == 1:
            return parts[0]
        lengths = [np.diff(part.offsets) for part in parts if part.offsets is not None]
        if len(lengths) not in (0, len(parts)):
            raise LabelError("payloads of one signal: expected all ragged or none, got both")
        values = np.concatenate([part.values for part in parts])
        return Payload(values, offsets_of(np.concatenate(lengths)) if lengths else None)


def _gather_ragged(
    parts: Sequence[Payload], part: np.ndarray, rows: np.ndarray, dtype: np.dtype
) -> Payload:
    pieces = []
    for number, row in zip(part.tolist(), rows.tolist(), strict=True):
        bounds = parts[number].offsets
        assert bounds is not None, "payloads of one signal: all ragged or none"
        pieces.append(parts[number].values[bounds[row] : bounds[row + 1]])
    values = np.concatenate(pieces) if pieces else np.empty(0, dtype)
    return Payload(values, offsets_of(np.array([len(piece) for piece in pieces], np.int64)))


def torch_dtype(name: str) -> "torch.dtype":
    """Return PyTorch's dtype of a name of `DTYPES`."""
    import torch

    found: torch.dtype = getattr(torch, name)
    return found


def to_storage(values: "Tensor", dtype: str) -> np.ndarray:
    """Return a tensor as a NumPy array in the storage form of `dtype`."""
    import torch

    cast = values.detach().to("cpu", torch_dtype(dtype)).contiguous()
    return cast.view(torch.int16).numpy() if dtype == "bfloat16" else cast.numpy()


def from_storage(values: np.ndarray, dtype: str) -> "Tensor":
    """Return stored values as a tensor of `dtype` that shares their memory."""
    import torch

    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
