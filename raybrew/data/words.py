"""Sentences of words as a tokenizer sees them, and where each word begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from raybrew.errors import ConfigError

__all__ = ["EncodedWords", "encode_words"]


@dataclass(frozen=True)
class EncodedWords:
    """Sentences of words, encoded.

    Args:
        input_ids: of each sentence.
        token_type_ids: of each; None where the tokenizer makes none.
        first_tokens: of each, int64 (words,): the first token of each word; -1 for words beyond
            the longest input, and for those that the tokenizer makes nothing of.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    first_tokens: list[np.ndarray]


def encode_words(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[Sequence[str]], max_length: int
) -> EncodedWords:
    """Encode sentences.

    Args:
        tokenizer: a fast one, which adds its special tokens.
        sentences: words of each.
        max_length: longer sentences are cut.

    Raises:
        ConfigError: the tokenizer refuses words that were split before.
    """
    try:
        encoded: Any = tokenizer(
            [list(words) for words in sentences],
            is_split_into_words=True,
            truncation=True,
            max_length=max_length,
        )
    except (AssertionError, ValueError) as error:
        raise ConfigError(
            f"tokenizer {type(tokenizer).__name__}: expected one that takes words, got: {error}"
        ) from error
    firsts = [
        _first_tokens(encoded.word_ids(row), len(words)) for row, words in enumerate(sentences)
    ]
    return EncodedWords(encoded["input_ids"], encoded.get("token_type_ids"), firsts)


def _first_tokens(word_ids: Sequence[int | None], num_words: int) -> np.ndarray:
    firsts = np.full(num_words, -1, np.int64)
    for token, word in reversed(list(enumerate(word_ids))):
        if word is not None:
            firsts[word] = token
    return firsts
