"""Pairs of a question and a passage, where long passages become windows that overlap."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from raybrew.data.encoding import EncodedView, view_from_ids
from raybrew.errors import DataError

__all__ = ["Windows", "encode_windows", "same_windows"]

_MIN_PASSAGE_TOKENS = 4


@dataclass(frozen=True)
class Windows:
    """N windows as one tokenizer sees them.

    Args:
        view: their tokens.
        source: int64 (N,), row that each window comes from.
        starts: int64, flat over tokens: character of the passage where the token starts, -1 for
            tokens that aren't the passage's.
        ends: the same for the character after its last one.
        unanswered: int64 (N,), token of each window that stands for no answer: the class token,
            which is XLNet's last, or the first token of a text without one.
    """

    view: EncodedView
    source: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    unanswered: np.ndarray


def encode_windows(
    tokenizer: PreTrainedTokenizerBase,
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
    _check_room(tokenizer, questions, max_length, stride, what)
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


def same_windows(
    windows: Windows,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    passages: Sequence[str],
    max_length: int,
) -> tuple[EncodedView, np.ndarray]:
    """Encode the pieces of the passages that windows show with another tokenizer.

    Returns:
        What it makes of them, and for each token of the windows the token that starts, and the one
        that ends, at the same character, int32 (tokens, 2); -1 where none does. The tokens that
        stand for no answer answer for each other.
    """
    pieces, offsets = _pieces(windows, passages)
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
    for number, shift in enumerate(offsets):
        mine = slice(*windows.view.offsets[number : number + 2])
        theirs = slice(*others.view.offsets[number : number + 2])
        for side, (ours, other) in enumerate(
            ((windows.starts, others.starts), (windows.ends, others.ends))
        ):
            known = {int(c) + shift: t for t, c in enumerate(other[theirs]) if c >= 0}
            aligned[mine, side] = [known.get(int(c), -1) if c >= 0 else -1 for c in ours[mine]]
        unanswered = windows.view.offsets[number] + windows.unanswered[number]
        aligned[unanswered] = others.unanswered[number]
    return others.view, aligned


def _pieces(windows: Windows, passages: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the piece of its passage that each window shows, and where it starts."""
    pieces, offsets = [], []
    for number, row in enumerate(windows.source):
        mine = slice(*windows.view.offsets[number : number + 2])
        starts, ends = windows.starts[mine], windows.ends[mine]
        first = int(starts[starts >= 0].min()) if (starts >= 0).any() else 0
        pieces.append(passages[row][first : max(int(ends.max()), first)])
        offsets.append(first)
    return pieces, offsets


def _windows(tokenizer: PreTrainedTokenizerBase, encoded: Any, source: np.ndarray) -> Windows:
    starts, ends, unanswered = [], [], []
    for number in range(len(source)):
        parts = encoded.sequence_ids(number)
        of_passage = [part == 1 for part in parts]
        of_class = [
            token == tokenizer.cls_token_id and part is None
            for token, part in zip(encoded["input_ids"][number], parts, strict=True)
        ]
        unanswered.append(of_class.index(True) if any(of_class) else 0)
        for own, (start, end) in zip(of_passage, encoded["offset_mapping"][number], strict=True):
            # A token of no characters shows nothing of the passage.
            starts.append(start if own and end > start else -1)
            ends.append(end if own and end > start else -1)
    view = view_from_ids(encoded["input_ids"], encoded.get("token_type_ids"))
    starts, ends, unanswered = (np.array(each, np.int64) for each in (starts, ends, unanswered))
    return Windows(view, source, starts, ends, unanswered)


def _check_room(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    max_length: int,
    stride: int,
    what: str,
) -> None:
    most = max_length - tokenizer.num_special_tokens_to_add(pair=True) - stride
    encoded: Any = tokenizer(list(questions), add_special_tokens=False)
    for row, ids in enumerate(encoded["input_ids"]):
        if len(ids) + _MIN_PASSAGE_TOKENS > most:
            raise DataError(
                f"{what}: row {row}: expected a question that leaves room for {stride} shared and "
                f"{_MIN_PASSAGE_TOKENS} new tokens of the passage in a window of {max_length}, got "
                f"one of {len(ids)} tokens; raise max_length or lower stride"
            )
