"""Tokenizers of one vocabulary that make something else of a text, one way at a time."""

import copy
import re

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from raybrew.data.encoding import same_vocabulary
from raybrew.data.encoding_check import encoding_difference
from tests.made import like_bert, make_tokenizer

LETTERS = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZéï"]
DATA = [f"w{n} w{n + 1}" for n in range(9)]


def letters(*, lowercase: bool = False, strip_accents: bool = False) -> PreTrainedTokenizerFast:
    """BERT's form, one token a letter."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
    vocabulary = {name: n for n, name in enumerate([*names, *(f"##{each}" for each in LETTERS)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return like_bert(tokenizer)


def byte_level(*, prefix: bool) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: n for n, symbol in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def merged(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    vocabulary = {symbol: n for n, symbol in enumerate(["[UNK]", *"xqz", "xq", "qz"])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, list(merges), unk_token="[UNK]")),
        unk_token="[UNK]",
    )


def ending(with_separator: bool) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]" if with_separator else "[CLS] $A",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def with_option(**options) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(make_tokenizer())
    for name, value in options.items():
        setattr(tokenizer, name, value)
    return tokenizer


def difference(teacher, student, texts=DATA, pairs=None, *, segments: bool = True) -> str | None:
    assert same_vocabulary(teacher, student)
    return encoding_difference(teacher, student, texts, pairs, 32, segments=segments)


@pytest.mark.parametrize(
    ("teacher", "student", "said"),
    [
        (letters(lowercase=True), letters(), r"'h ##e ##l.* at the teacher and 'H ##e"),
        (letters(strip_accents=True), letters(), r"##i ##v.* at the teacher and '##ï ##v"),
        (
            byte_level(prefix=True),
            byte_level(prefix=False),
            r"'Ġ H.*and 'H e.*from token 0 of",
        ),
        (ending(True), ending(False), r"\[SEP\]' at the teacher and '' at the student"),
        (with_option(truncation_side="left"), make_tokenizer(), "of 'w0 w1"),
    ],
)
def test_what_texts_become_is_compared_not_vocabularies_alone(teacher, student, said):
    found = difference(teacher, student)
    assert found is not None
    assert re.search(said, found), found


def test_rows_of_the_data_are_tried_as_well():
    one, other = merged(("x", "q")), merged(("q", "z"))
    assert difference(one, other, ["z"]) is None
    assert "'xq z' at the teacher and 'x qz' at the student" in str(
        difference(one, other, ["z", "xqz"])
    )
    words = difference(one, other, [["z"], ["xqz"]])
    assert "'xqz'" in str(words)


def test_segments_are_compared_where_they_are_any_and_the_model_reads_them():
    bare = with_option(model_input_names=["input_ids", "attention_mask"])
    bert = make_tokenizer()
    assert difference(bert, bare) is None
    assert difference(bare, bert) is None
    assert "[0, 1] at the teacher and [0] at the student" in str(
        difference(bert, bare, DATA, DATA[::-1])
    )
    assert difference(bare, bert, DATA, DATA[::-1], segments=False) is None


@pytest.mark.parametrize("tokenizer", [make_tokenizer(), letters(), byte_level(prefix=True)])
@pytest.mark.parametrize("pairs", [None, DATA[::-1]])
def test_a_tokenizer_is_like_itself(tokenizer, pairs):
    assert difference(tokenizer, copy.deepcopy(tokenizer), DATA, pairs) is None
    assert difference(tokenizer, copy.deepcopy(tokenizer), [], None) is None
