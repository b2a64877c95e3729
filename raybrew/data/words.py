"""Sentences of words as a tokenizer sees them, and where each word begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

__all__ = ["EncodedWords", "encode_words"]


@dataclass(frozen=True)
class EncodedWords:
    """Sentences of words, encoded.

    Args:
        input_ids: of each sentence.
        token_type_ids: of each; None where the tokenizer makes none.
        first_tokens: of each, int64 (words,): the first token of each word; -1 for words beyond
            the longest input, and for those that no token of their own stands for.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    first_tokens: list[np.ndarray]


def encode_words(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[Sequence[str]], max_length: int
) -> EncodedWords:
    """Encode sentences as the texts that their words make, with a space between two of them.

    Models read texts when they are pretrained. Words one by one are something else to many
    tokenizers: byte-level ones without `add_prefix_space` glue them together.

    Args:
        tokenizer: a fast one, which adds its special tokens.
        sentences: words of each.
        max_length: longer sentences are cut.
    """
    spans = [_spans(words) for words in sentences]
    encoded: Any = tokenizer(
        [text for text, _ in spans],
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
    )
    firsts = []
    for row, (_, ends) in enumerate(spans):
        # Special tokens that the tokenizer adds are of no text.
        of_text = [number is not None for number in encoded.sequence_ids(row)]
        firsts.append(_first_tokens(encoded["offset_mapping"][row], of_text, ends))
    return EncodedWords(encoded["input_ids"], encoded.get("token_type_ids"), firsts)


def _spans(words: Sequence[str]) -> tuple[str, np.ndarray]:
    """Join words, and return where each ends; the space before a word belongs to it."""
    bare = [word.strip() for word in words]
    # A word of nothing takes no room, which would be two spaces in a row.
    rooms = [len(word) + 1 if word else 0 for word in bare]
    # The first word has no space before it.
    return " ".join(filter(None, bare)), np.cumsum(rooms) - 1


def _first_tokens(
    spans: Sequence[tuple[int, int]], of_text: Sequence[bool], ends: np.ndarray
) -> np.ndarray:
    """Return the first token that starts within each word; -1 where none does.

    Args:
        spans: characters that each token stands for.
        of_text: which tokens stand for any.
        ends: character after each word's last one, int64 (words,).
    """
    firsts = np.full(len(ends), -1, np.int64)
    words = np.searchsorted(ends, [start for start, _ in spans], side="right")
    for token, word in reversed(list(enumerate(words))):
        if of_text[token] and word < len(ends):
            firsts[word] = token
    return firsts
