"""Encoded examples: ragged token ids, each example with a key that is a hash of its content.

    texts, pairs ──tokenizer──► EncodedView   one tokenizer's ids of all rows, and their keys
    views + labels ───────────► EncodedSplit  what a process maps into memory

    <folder>/split.arrow        labels, format version
    <folder>/view-<name>.arrow  ids, type ids, offsets, keys

A key is what soft labels are filed under: equal token ids, equal key, whatever the data set.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import xxhash
from transformers import PreTrainedTokenizerBase

from raybrew.errors import DataError

__all__ = ["EncodedSplit", "EncodedView", "content_keys", "encode", "same_vocabulary"]

_FORMAT = "raybrew-encoded-1"
_BATCH = 1024


@dataclass(frozen=True)
class EncodedView:
    """N examples as one tokenizer sees them.

    Args:
        input_ids: int32, flat.
        token_type_ids: int8, flat; None where the tokenizer makes none.
        offsets: int64 (N + 1,): example i owns `[offsets[i], offsets[i + 1])` of the flat arrays.
        keys: uint64 (N, 2), content keys.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray | None
    offsets: np.ndarray
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 (N,)."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> "EncodedView":
        """Return these rows, in this order, as a copy."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        source = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        types = None if self.token_type_ids is None else self.token_type_ids[source]
        return EncodedView(self.input_ids[source], types, offsets, self.keys[rows])

    @staticmethod
    def concat(views: "Sequence[EncodedView]") -> "EncodedView":
        """Join examples of one tokenizer, in order."""
        types = [view.token_type_ids for view in views if view.token_type_ids is not None]
        offsets = np.zeros(sum(map(len, views)) + 1, np.int64)
        np.cumsum(np.concatenate([view.lengths for view in views]), out=offsets[1:])
        return EncodedView(
            np.concatenate([view.input_ids for view in views]),
            np.concatenate(types) if types else None,
            offsets,
            np.concatenate([view.keys for view in views]),
        )


@dataclass(frozen=True)
class EncodedSplit:
    """The rows of one split: a view for each tokenizer that reads them, and the labels.

    Args:
        views: by name.
        labels: int64 (N,); negative = none.
        routes: int64 (N,), index of the teacher that each row is routed to; None where the data
            doesn't name it.
    """

    views: Mapping[str, EncodedView]
    labels: np.ndarray
    routes: np.ndarray | None = None

    def save(self, folder: Path) -> None:
        """Write the split; each file is there whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, view in self.views.items():
            arrays = {"input_ids": view.input_ids, "offsets": view.offsets, "keys": view.keys}
            if view.token_type_ids is not None:
                arrays["token_type_ids"] = view.token_type_ids
            _write(folder / f"view-{name}.arrow", arrays)
        # Written last: a folder with it is complete.
        columns = {"labels": self.labels}
        if self.routes is not None:
            columns["routes"] = self.routes
        _write(folder / "split.arrow", columns, views=list(self.views))

    @staticmethod
    def load(folder: Path) -> "EncodedSplit":
        """Map a split into memory; its arrays are read-only.

        Raises:
            DataError: a file is missing, damaged, or of another version.
        """
        arrays, names = _read(folder / "split.arrow")
        views = {}
        for name in names:
            columns, _ = _read(folder / f"view-{name}.arrow")
            views[name] = EncodedView(
                input_ids=columns["input_ids"],
                token_type_ids=columns.get("token_type_ids"),
                offsets=columns["offsets"],
                keys=columns["keys"].reshape(-1, 2),
            )
        return EncodedSplit(views, arrays["labels"], arrays.get("routes"))


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
) -> tuple[EncodedView, int]:
    """Encode texts or pairs of texts.

    Args:
        tokenizer: adds its special tokens.
        texts: N texts.
        pairs: N second texts, or None.
        max_length: longer examples are cut, the longer text of a pair first.

    Returns:
        The view, and how many examples were cut.
    """
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    cut = 0
    for start in range(0, len(texts), _BATCH):
        part = slice(start, start + _BATCH)
        second = None if pairs is None else list(pairs[part])
        # Encoded whole first, so that what is cut can be counted.
        whole = tokenizer(list(texts[part]), second, truncation=False, verbose=False)
        if any(len(each) > max_length for each in whole["input_ids"]):
            cut += sum(len(each) > max_length for each in whole["input_ids"])
            whole = tokenizer(
                list(texts[part]), second, truncation="longest_first", max_length=max_length
            )
        ids += [np.array(each, np.int32) for each in whole["input_ids"]]
        types += [np.array(each, np.int8) for each in whole.get("token_type_ids", ())]
    offsets = np.cumsum([0, *map(len, ids)]).astype(np.int64)
    view_types = np.concatenate(types) if types else None
    keys = content_keys(ids, types or None)
    return EncodedView(np.concatenate(ids), view_types, offsets, keys), cut


def content_keys(
    input_ids: Sequence[np.ndarray], token_type_ids: Sequence[np.ndarray] | None
) -> np.ndarray:
    """Hash each example's token ids and pair ids with 128 bits of xxh3.

    Returns:
        uint64 (N, 2). Pair ids that are all 0 say nothing: with and without them the key is the
        same.
    """
    keys = np.empty((len(input_ids), 2), np.uint64)
    for row, ids in enumerate(input_ids):
        # The length stands in front, so that ids can't be taken for pair ids.
        digest = xxhash.xxh3_128(np.int64(len(ids)).tobytes() + ids.astype("<i4").tobytes())
        if token_type_ids is not None and token_type_ids[row].any():
            digest.update(token_type_ids[row].astype("<i4").tobytes())
        keys[row] = np.frombuffer(digest.digest(), np.uint64)
    return keys


def same_vocabulary(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether token ids of one tokenizer mean the same to a model of the other."""
    return one.get_vocab() == other.get_vocab()


def _write(path: Path, arrays: Mapping[str, np.ndarray], views: Sequence[str] = ()) -> None:
    # Columns differ in length: each is one row that holds a list.
    columns = [
        pa.LargeListArray.from_arrays(
            [0, array.size], pa.array(np.ascontiguousarray(array).ravel())
        )
        for array in arrays.values()
    ]
    metadata = {"format": _FORMAT, "views": json.dumps(list(views))}
    schema = pa.schema(
        [(name, column.type) for name, column in zip(arrays, columns, strict=True)],
        metadata=dict(metadata),
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with ipc.new_file(str(temporary), schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: encoded examples can't be written: {error}") from error


def _read(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    try:
        with pa.memory_map(str(path)) as source:
            reader = ipc.open_file(source)
            metadata = {k.decode(): v.decode() for k, v in (reader.schema.metadata or {}).items()}
            batch = reader.get_batch(0)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path}: expected encoded examples, got {error}; delete the folder and run again"
        ) from error
    if metadata.get("format") != _FORMAT:
        raise DataError(
            f"{path}: expected format {_FORMAT}, got {metadata.get('format')}; delete the folder "
            "and run again"
        )
    arrays = {
        name: column.values.to_numpy(zero_copy_only=True)
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }
    return arrays, json.loads(metadata["views"])
