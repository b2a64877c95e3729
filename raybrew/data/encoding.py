"""Encoded examples: ragged token ids of texts, words and passages, and a content key for each.

    texts, pairs         ──tokenizer──► EncodedView   token ids of all rows, and their keys
    sentences of words   ──tokenizer──► EncodedView   and the first token of each word
    questions, passages  ──tokenizer──► Windows       long passages become overlapping windows

A content key is a hash of what one model reads: equal token ids have equal keys, in every data set.
Soft labels are filed under it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from raybrew.errors import DataError

if TYPE_CHECKING:
    # Takes seconds to import, which `raybrew store` has no need to spend.
    from transformers import PreTrainedTokenizerBase

_BATCH = 1024
_MIN_PASSAGE_TOKENS = 4


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return where ragged rows of these lengths begin and end in a flat array, int64 (n + 1,)."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def spans(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the elements of some ragged rows; row i owns `[offsets[i], offsets[i + 1])`.

    Args:
        offsets: int64 (N + 1,).
        rows: int64 (n,), in any order, repeats allowed.

    Returns:
        Their places in the flat array, int64 (elements,), and the offsets of the rows that they
        make, int64 (n + 1,).
    """
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    taken = offsets_of(lengths)
    return np.repeat(starts - taken[:-1], lengths) + np.arange(taken[-1]), taken


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
        """Tokens of each example, int64 (N,); computed at each call, in time O(N)."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the tokens of some examples, int64 (n,), in time O(n)."""
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
        return EncodedView(
            np.concatenate([view.input_ids for view in views]),
            np.concatenate(types) if types else None,
            offsets_of(np.concatenate([view.lengths for view in views])),
            np.concatenate([view.keys for view in views]),
        )


def encode(
    tokenizer: "PreTrainedTokenizerBase",
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
        batch = list(texts[part]), None if pairs is None else list(pairs[part])
        # Encoded whole first, so that the examples that are cut can be counted.
        encoded = tokenizer(*batch, truncation=False, verbose=False)
        if too_long := sum(len(each) > max_length for each in encoded["input_ids"]):
            cut += too_long
            encoded = tokenizer(*batch, truncation="longest_first", max_length=max_length)
        ids += [np.array(each, np.int32) for each in encoded["input_ids"]]
        types += [np.array(each, np.int8) for each in encoded.get("token_type_ids", ())]
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
    view_types = None if types is None else np.concatenate(types)
    offsets = offsets_of(np.array([len(each) for each in ids]))
    return EncodedView(np.concatenate(ids), view_types, offsets, content_keys(ids, types))


def content_keys(
    input_ids: Sequence[np.ndarray], token_type_ids: Sequence[np.ndarray] | None
) -> np.ndarray:
    """Hash each example's token ids and pair ids with 128 bits of xxh3.

    Returns:
        uint64 (N, 2). Pair ids that are all 0 are left out: with and without them the key is the
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


def same_vocabulary(one: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase") -> bool:
    """Whether token ids of one tokenizer mean the same to a model of the other."""
    return one.get_vocab() == other.get_vocab()


def encode_words(
    tokenizer: "PreTrainedTokenizerBase", sentences: Sequence[Sequence[str]], max_length: int
) -> tuple[EncodedView, list[np.ndarray]]:
    """Encode sentences of words as texts: the words, joined by spaces.

    Models are pretrained on texts. Words that are encoded one by one differ from them for many
    tokenizers: byte-level ones without `add_prefix_space` glue them together.

    Args:
        tokenizer: a fast one, which adds its special tokens.
        sentences: words of each.
        max_length: longer sentences are cut.

    Returns:
        The view, and the first token of each word, int64 (words,) for each sentence; -1 for words
        beyond the longest input, and for those without a token of their own.
    """
    joined = [_join_words(words) for words in sentences]
    encoded: Any = tokenizer(
        [text for text, _ in joined],
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
    )
    firsts = []
    for row, (_, ends) in enumerate(joined):
        # Special tokens that the tokenizer adds are of no text.
        of_text = [number is not None for number in encoded.sequence_ids(row)]
        firsts.append(_first_tokens(encoded["offset_mapping"][row], of_text, ends))
    return view_from_ids(encoded["input_ids"], encoded.get("token_type_ids")), firsts


def _join_words(words: Sequence[str]) -> tuple[str, np.ndarray]:
    """Join words, and return where each ends; the space before a word belongs to it."""
    bare = [word.strip() for word in words]
    # An empty word takes no characters; a space of its own would make two in a row.
    widths = [len(word) + 1 if word else 0 for word in bare]
    # The first word has no space before it.
    return " ".join(filter(None, bare)), np.cumsum(widths) - 1


def _first_tokens(
    characters: Sequence[tuple[int, int]], of_text: Sequence[bool], ends: np.ndarray
) -> np.ndarray:
    """Return the first token that starts within each word; -1 where none does.

    Args:
        characters: that each token stands for, from and to.
        of_text: which tokens stand for any.
        ends: character after each word's last one, int64 (words,).
    """
    firsts = np.full(len(ends), -1, np.int64)
    words = np.searchsorted(ends, [start for start, _ in characters], side="right")
    for token, word in reversed(list(enumerate(words))):
        if of_text[token] and word < len(ends):
            firsts[word] = token
    return firsts


@dataclass(frozen=True)
class Windows:
    """N windows of passages, each with its question, as one tokenizer sees them.

    Args:
        view: their tokens.
        source: int64 (N,), row that each window comes from.
        starts: int64, flat over tokens: character of the passage where the token starts, -1 for
            tokens that aren't the passage's.
        ends: the same for the character after its last one.
        unanswered: int64 (N,), token of each window that stands for no answer: the class token,
            which is XLNet's last, or the first token where there is none.
    """

    view: EncodedView
    source: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    unanswered: np.ndarray


def encode_windows(
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[str],
    passages: Sequence[str],
    max_length: int,
    stride: int,
    what: str,
) -> Windows:
    """Encode questions with their passages.

    Args:
        tokenizer: a fast one.
        questions: N of them.
        passages: N of them.
        max_length: longest window.
        stride: tokens that neighbouring windows share.
        what: the job's task, for messages.

    Raises:
        DataError: a question leaves no room for its passage; names the row.
    """
    most = max_length - tokenizer.num_special_tokens_to_add(pair=True) - stride
    bare: Any = tokenizer(list(questions), add_special_tokens=False)
    for row, ids in enumerate(bare["input_ids"]):
        if len(ids) + _MIN_PASSAGE_TOKENS > most:
            raise DataError(
                f"{what}: row {row}: expected a question that leaves room for {stride} shared and "
                f"{_MIN_PASSAGE_TOKENS} new tokens of the passage in a window of {max_length}, got "
                f"one of {len(ids)} tokens; raise max_length or lower stride"
            )
    encoded: Any = tokenizer(
        list(questions),
        list(passages),
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    return _windows(tokenizer, encoded, np.array(encoded["overflow_to_sample_mapping"], np.int64))


def align_windows(
    windows: Windows,
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[str],
    passages: Sequence[str],
    max_length: int,
) -> tuple[EncodedView, np.ndarray]:
    """Encode the pieces of passages that windows show with another tokenizer.

    Returns:
        The view of the other tokenizer, and for each token of the windows its token that starts,
        and the one that ends, at the same character, int32 (tokens, 2); -1 where none does. The
        tokens that stand for no answer are aligned with each other.
    """
    pieces, shifts = _pieces(windows, passages)
    asked: Any = [questions[row] for row in windows.source]
    encoded: Any = tokenizer(
        asked,
        pieces,
        truncation="only_second",
        max_length=max_length,
        return_offsets_mapping=True,
    )
    others = _windows(tokenizer, encoded, windows.source)
    aligned = np.full((len(windows.starts), 2), -1, np.int32)
    for number, shift in enumerate(shifts):
        mine = slice(*windows.view.offsets[number : number + 2])
        theirs = slice(*others.view.offsets[number : number + 2])
        sides = ((windows.starts, others.starts), (windows.ends, others.ends))
        for side, (ours, other) in enumerate(sides):
            known = {int(c) + shift: t for t, c in enumerate(other[theirs]) if c >= 0}
            aligned[mine, side] = [known.get(int(c), -1) if c >= 0 else -1 for c in ours[mine]]
        unanswered = windows.view.offsets[number] + windows.unanswered[number]
        aligned[unanswered] = others.unanswered[number]
    return others.view, aligned


def _pieces(windows: Windows, passages: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the piece of its passage that each window shows, and where it starts."""
    pieces, starts_at = [], []
    for number, row in enumerate(windows.source):
        mine = slice(*windows.view.offsets[number : number + 2])
        starts, ends = windows.starts[mine], windows.ends[mine]
        first = int(starts[starts >= 0].min()) if (starts >= 0).any() else 0
        pieces.append(passages[row][first : max(int(ends.max()), first)])
        starts_at.append(first)
    return pieces, starts_at


def _windows(tokenizer: "PreTrainedTokenizerBase", encoded: Any, source: np.ndarray) -> Windows:
    starts, ends, unanswered = [], [], []
    for number, ids in enumerate(encoded["input_ids"]):
        parts = encoded.sequence_ids(number)
        class_tokens = [
            token
            for token, (token_id, part) in enumerate(zip(ids, parts, strict=True))
            if token_id == tokenizer.cls_token_id and part is None
        ]
        unanswered.append(class_tokens[0] if class_tokens else 0)
        for part, (start, end) in zip(parts, encoded["offset_mapping"][number], strict=True):
            # A token of no characters shows nothing of the passage.
            shown = part == 1 and end > start
            starts.append(start if shown else -1)
            ends.append(end if shown else -1)
    view = view_from_ids(encoded["input_ids"], encoded.get("token_type_ids"))
    starts, ends, unanswered = (np.array(each, np.int64) for each in (starts, ends, unanswered))
    return Windows(view, source, starts, ends, unanswered)
