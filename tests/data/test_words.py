"""Words reach a model as the text that they make, with spaces, whatever its tokenizer is like."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from raybrew.data.words import encode_words

SENTENCES = [
    "john smith lives in london and works for acme",
    "the quick brown fox jumps over the lazy dog",
    "a small city in the north of the country isn't far",
]


def trained(tokenizer: Tokenizer, alphabet=()) -> PreTrainedTokenizerFast:
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=list(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {sentence}" for sentence in SENTENCES * 4], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def byte_level(*, prefix: bool, trim: bool = False) -> PreTrainedTokenizerFast:
    """RoBERTa's form, or GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made = trained(tokenizer, pre_tokenizers.ByteLevel.alphabet())
    if trim:
        made.backend_tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=prefix
        )
    return made


def split_by_pattern() -> PreTrainedTokenizerFast:
    """Llama 3's and Qwen's form: a pattern cuts the text, bytes follow."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\w+| ?[^\s\w]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return trained(tokenizer, pre_tokenizers.ByteLevel.alphabet())


def pieces(scheme: str) -> PreTrainedTokenizerFast:
    """SentencePiece's form."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return trained(tokenizer)


def prepended() -> PreTrainedTokenizerFast:
    """Llama 2's form: the first space is the normalizer's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    return trained(tokenizer)


TOKENIZERS = {
    "bytes": byte_level(prefix=False),
    "bytes, trimmed": byte_level(prefix=False, trim=True),
    "bytes, space in front": byte_level(prefix=True, trim=True),
    "pattern": split_by_pattern(),
    "pieces, always": pieces("always"),
    "pieces, first": pieces("first"),
    "pieces, never": pieces("never"),
    "prepended": prepended(),
}
SPLIT_ALIKE = ("bytes, space in front", "pieces, always")
"""To these words one by one are what they are in a text."""

words_of = st.lists(st.text("abcdjohn'.,é漢", min_size=1, max_size=7), min_size=1, max_size=8)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_are_the_tokens_of_their_sentence(name):
    words = ["john", "smith", "lives", "in", "london"]
    found = encode_words(TOKENIZERS[name], [words], 64)
    assert found.input_ids[0] == TOKENIZERS[name](" ".join(words))["input_ids"]
    tokens = TOKENIZERS[name].convert_ids_to_tokens(found.input_ids[0])
    firsts = [tokens[token] for token in found.first_tokens[0]]
    assert [first.lstrip("Ġ▁")[:1] for first in firsts[1:]] == ["s", "l", "i", "l"]
    assert all(first[0] in "Ġ▁" for first in firsts[1:]), firsts


@pytest.mark.parametrize("name", TOKENIZERS)
@given(words=words_of)
def test_each_word_begins_at_its_own_token(name, words):
    tokenizer = TOKENIZERS[name]
    found = encode_words(tokenizer, [words], 512)
    firsts = found.first_tokens[0]
    assert (np.diff(firsts) > 0).all()
    assert firsts[0] >= 1  # past the token that begins the text
    text = " ".join(words)
    spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    bounds = [*firsts.tolist(), len(spans) - 1]
    for word, begin, end in zip(words, bounds[:-1], bounds[1:], strict=True):
        assert text[spans[begin][0] : spans[end - 1][1]].strip() == word


@pytest.mark.parametrize("name", SPLIT_ALIKE)
@given(words=words_of)
def test_tokenizers_that_take_words_give_what_transformers_gives(name, words):
    found = encode_words(TOKENIZERS[name], [words], 12)
    expected = TOKENIZERS[name](words, is_split_into_words=True, truncation=True, max_length=12)
    assert found.input_ids[0] == expected["input_ids"]
    word_ids = expected.word_ids()
    firsts = [word_ids.index(n) if n in word_ids else -1 for n in range(len(words))]
    assert found.first_tokens[0].tolist() == firsts


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_of_nothing_have_no_token_and_shift_no_other(name):
    tokenizer = TOKENIZERS[name]
    found = encode_words(tokenizer, [["", "john", " ", "smith ", ""], [], [""]], 64)
    alone = encode_words(tokenizer, [["john", "smith"]], 64)
    assert found.input_ids[0] == alone.input_ids[0]
    john, smith = alone.first_tokens[0]
    assert found.first_tokens[0].tolist() == [-1, john, -1, smith, -1]
    assert [firsts.tolist() for firsts in found.first_tokens[1:]] == [[], [-1]]


def test_a_word_that_is_a_special_token_keeps_its_place():
    found = encode_words(TOKENIZERS["bytes"], [["john", "</s>", "smith"]], 64)
    tokens = TOKENIZERS["bytes"].convert_ids_to_tokens(found.input_ids[0])
    assert tokens[found.first_tokens[0][2]] == "Ġsmith"
    assert 0 < found.first_tokens[0][0] < found.first_tokens[0][1] < found.first_tokens[0][2]
