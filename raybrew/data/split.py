"""An encoded split that processes map into memory, and padded batches of its examples.

    views + labels ──save──► <folder>/split.arrow        labels, alignments, counts
                             <folder>/view-<name>.arrow  ids, type ids, offsets, keys
                             <folder>/reference.arrow    rows of the data, for metrics

An example is what a model reads at once: a row of the data, or a window of a long one.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import torch
from torch import Tensor

from raybrew.data.encoding import EncodedView, spans
from raybrew.data.files import explain, map_file
from raybrew.errors import DataError

STUDENT_VIEW = "(student)"
"""Name of the encoded view that the student reads; no teacher can have it."""

IGNORED = -100
"""Label of a token that is no position of the task: padding, a special token, part of a word."""

UNLABELLED = -1
"""Class label of an example, or of a position, whose true class isn't known."""

_FORMAT = "raybrew-encoded-2"


@dataclass(frozen=True)
class Padding:
    """What fills shorter examples up, and where.

    Args:
        token_id: of the token that fills.
        side: where it stands.
        is_read: whether the model's answer depends on padding, masked or not: answers that must be
            those of the example alone come from batches of one length.
    """

    token_id: int
    side: Literal["right", "left"] = "right"
    is_read: bool = False


@dataclass(frozen=True)
class EncodedSplit:
    """The examples of one split: a view for each tokenizer that reads them, and their labels.

    Args:
        views: by name; the student's is among them.
        labels: (N, …), whatever the task type has for each example; with `per_token` flat, one for
            each token of the student's view.
        routes: int64 (N,), index of the teacher that each example is routed to; None where the
            data doesn't name it.
        per_token: whether there is a label for each token.
        source: int64 (N,), row of the data that each example comes from; None if they are the same.
        alignments: by view, int32, flat over the student's tokens: the token of the other view that
            corresponds, -1 where none does; (tokens, outputs) where outputs differ in it.
        tokens: further arrays, flat over the student's tokens.
        reference: rows of the data for metrics that compare more than labels.
        counts: what was cut, lost or masked during encoding.
    """

    views: Mapping[str, EncodedView]
    labels: np.ndarray
    routes: np.ndarray | None = None
    per_token: bool = False
    source: np.ndarray | None = None
    alignments: Mapping[str, np.ndarray] = field(default_factory=dict)
    tokens: Mapping[str, np.ndarray] = field(default_factory=dict)
    reference: pa.Table | None = None
    counts: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.views.values())))

    @property
    def student(self) -> EncodedView:
        """What the student reads."""
        return self.views[STUDENT_VIEW]

    def labels_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the labels of some examples: (n, …), or flat over their tokens."""
        if not self.per_token:
            return self.labels[rows]
        return self.labels[spans(self.student.offsets, rows)[0]]

    def save(self, folder: Path) -> None:
        """Write the split; each file is there whole or not at all.

        Raises:
            DataError: it can't be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, view in self.views.items():
            _write(folder / f"view-{name}.arrow", vars(view))
        if self.reference is not None:
            _replace(folder / "reference.arrow", self.reference)
        arrays = {"labels": self.labels, "routes": self.routes, "source": self.source}
        arrays |= {f"align-{name}": array for name, array in self.alignments.items()}
        arrays |= {f"token-{name}": array for name, array in self.tokens.items()}
        properties = {
            "views": list(self.views),
            "per_token": self.per_token,
            "reference": self.reference is not None,
            "counts": dict(self.counts),
        }
        # Written last: a folder with it is complete.
        _write(folder / "split.arrow", arrays, properties)

    @staticmethod
    def load(folder: Path) -> "EncodedSplit":
        """Map a split into memory; its arrays are read-only.

        Raises:
            DataError: a file is missing, damaged, or of another version.
        """
        arrays, properties = _read(folder / "split.arrow")
        views = {}
        for name in properties["views"]:
            columns, _ = _read(folder / f"view-{name}.arrow")
            views[name] = EncodedView(**{"token_type_ids": None, **columns})
        return EncodedSplit(
            views=views,
            labels=arrays["labels"],
            routes=arrays.get("routes"),
            per_token=properties["per_token"],
            source=arrays.get("source"),
            alignments=_prefixed(arrays, "align-"),
            tokens=_prefixed(arrays, "token-"),
            reference=_open(folder / "reference.arrow") if properties["reference"] else None,
            counts=properties["counts"],
        )


def _prefixed(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _write(
    path: Path,
    arrays: Mapping[str, np.ndarray | None],
    properties: Mapping[str, Any] | None = None,
) -> None:
    # Columns differ in length: each is one row that holds a list.
    present = {name: array for name, array in arrays.items() if array is not None}
    columns = [
        pa.LargeListArray.from_arrays(
            [0, array.size], pa.array(np.ascontiguousarray(array).ravel())
        )
        for array in present.values()
    ]
    metadata = {
        "format": _FORMAT,
        "shapes": json.dumps({name: array.shape for name, array in present.items()}),
        "facts": json.dumps(properties or {}),
    }
    schema = pa.schema(
        [(name, column.type) for name, column in zip(present, columns, strict=True)],
        metadata=dict(metadata),
    )
    _replace(path, pa.Table.from_arrays(columns, schema=schema))


def _replace(path: Path, table: pa.Table) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with ipc.new_file(str(temporary), table.schema) as writer:
            writer.write_table(table)
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: encoded examples can't be written: {explain(error)}") from error


def _open(path: Path) -> pa.Table:
    try:
        with map_file(path) as source:
            return ipc.open_file(source).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        # Arrow's own errors about a file's bytes have no errno.
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise DataError(f"{path}: encoded examples can't be read: {explain(error)}") from error
        raise DataError(
            f"{path}: expected encoded examples, got {error}; delete the folder and run again"
        ) from error


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    table = _open(path)
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    if metadata.get("format") != _FORMAT:
        raise DataError(
            f"{path}: expected format {_FORMAT}, got {metadata.get('format')}; delete the folder "
            "and run again"
        )
    shapes = json.loads(metadata["shapes"])
    arrays = {
        name: column.chunk(0).values.to_numpy(zero_copy_only=True).reshape(shapes[name])
        for name, column in zip(table.schema.names, table.columns, strict=True)
    }
    return arrays, json.loads(metadata["facts"])


def batches_by_length(
    lengths: np.ndarray,
    *,
    max_tokens: int | None = None,
    max_examples: int | None = None,
    one_length: bool = False,
) -> Iterator[np.ndarray]:
    """Split examples into batches of similar length.

    Args:
        lengths: tokens of each example, (n,).
        max_tokens: most tokens of a batch, padding included; a longer example makes a batch of its
            own.
        max_examples: most examples of a batch.
        one_length: whether all examples of a batch must have the same length.

    Yields:
        Positions of each batch's examples, shortest first; a function of the arguments alone.
    """
    order = np.argsort(lengths, kind="stable")
    ascending = lengths[order].tolist()
    start = 0
    for end in range(1, len(order) + 1):
        size = end + 1 - start  # if one more example joins the batch
        if (
            end == len(order)
            or (max_tokens is not None and size * ascending[end] > max_tokens)
            or (max_examples is not None and size > max_examples)
            or (one_length and ascending[end] != ascending[start])
        ):
            yield order[start:end]
            start = end


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
    batch = {
        "input_ids": _filled(mask, taken.input_ids, padding.token_id),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
    }
    if taken.token_type_ids is not None:
        batch["token_type_ids"] = _filled(mask, taken.token_type_ids, 0)
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
    """Pad values of each of the student's tokens on the right, int64 (b, length, …)."""
    source, offsets = spans(split.student.offsets, rows)
    return _filled(np.arange(length) < np.diff(offsets)[:, None], values[source], fill)


def _filled(mask: np.ndarray, values: np.ndarray, fill: int) -> Tensor:
    """Put flat values where the mask is true, and `fill` elsewhere, int64."""
    padded = np.full((*mask.shape, *values.shape[1:]), fill, np.int64)
    padded[mask] = values
    return torch.from_numpy(padded)
