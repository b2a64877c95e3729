"""Encoded examples: ragged token ids, each example with a key that is a hash of its content.

    texts, pairs ──tokenizer──► EncodedView   one tokenizer's ids of all rows, and their keys

A key is what soft labels are filed under: equal token ids, equal key, whatever the data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from transformers import PreTrainedTokenizerBase

from raybrew.data.spans import spans

__all__ = ["EncodedView", "content_keys", "encode", "same_vocabulary", "view_from_ids"]

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
        """Tokens of each example, int64 (N,): work that grows with the data, done at each call."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the tokens of some examples, int64 (n,), without a look at the others."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def take(self, rows: np.ndarray) -> "EncodedView":
        """Return these rows, in this order, as a copy."""
        source, offsets = spans(self.offsets, rows)
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
    return view_from_ids(ids, types or None), cut


def view_from_ids(
    input_ids: Sequence[Sequence[int] | np.ndarray],
    token_type_ids: Sequence[Sequence[int] | np.ndarray] | None = None,
) -> EncodedView:
    """Put encoded examples together.

    Args:
        input_ids: of each of at least one example.
        token_type_ids: of each, or None.
    """
    ids = [np.asarray(each, np.int32) for each in input_ids]
    types = [np.asarray(each, np.int8) for each in token_type_ids or ()] or None
    offsets = np.cumsum([0, *map(len, ids)]).astype(np.int64)
    view_types = None if types is None else np.concatenate(types)
    return EncodedView(np.concatenate(ids), view_types, offsets, content_keys(ids, types))


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
