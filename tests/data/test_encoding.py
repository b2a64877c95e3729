import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from raybrew.data.encoding import (
    EncodedView,
    content_keys,
    distinct_keys,
    encode,
    encode_words,
    same_vocabulary,
)
from raybrew.data.split import STUDENT_VIEW, EncodedSplit, Padding, collate
from raybrew.errors import DataError
from tests.made import WORDS, make_tokenizer

TOKENIZER = make_tokenizer()
sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)


def view_of(texts: list[str], pairs: list[str] | None = None) -> EncodedView:
    return encode(TOKENIZER, texts, pairs, 64)[0]


def ids_of(view: EncodedView, row: int) -> list[int]:
    return view.input_ids[view.offsets[row] : view.offsets[row + 1]].tolist()


@given(st.lists(sentences, min_size=1, max_size=6), st.data())
def test_take_and_collate_are_what_the_tokenizer_gives(texts, data):
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=8))
    batch = collate(view_of(texts), np.array(rows), Padding(0))
    expected = TOKENIZER([texts[row] for row in rows], padding=True, return_tensors="pt")
    assert set(batch) == set(expected)
    for name, tensor in expected.items():
        assert batch[name].equal(tensor), name


@given(st.lists(sentences, min_size=2, max_size=8))
def test_equal_tokens_have_equal_keys_and_others_dont(texts):
    view = view_of(texts)
    for i in range(len(texts)):
        for j in range(len(texts)):
            same = ids_of(view, i) == ids_of(view, j)
            assert (view.keys[i] == view.keys[j]).all() == same


def test_a_key_depends_on_content_alone_not_on_the_batch_or_the_order():
    texts = ["w1 w2 w3", "w4", "w5 w6"]
    assert (view_of(texts).keys == view_of(texts[::-1]).keys[::-1]).all()
    assert (view_of([texts[1]]).keys[0] == view_of(texts).keys[1]).all()


def test_pairs_that_are_split_elsewhere_have_other_keys():
    view = view_of(["w1", "w1 w2"], ["w2 w3", "w3"])
    assert len(np.unique(view.keys, axis=0)) == 2
    # Same tokens, other pair ids.
    ids = [np.array([2, 5, 3, 6], np.int32)] * 2
    types = [np.array([0, 0, 0, 1], np.int8), np.array([0, 0, 1, 1], np.int8)]
    assert len(np.unique(content_keys(ids, types), axis=0)) == 2


def test_pair_ids_of_a_single_text_say_nothing():
    ids = [np.array([2, 5, 3], np.int32)]
    zeros = [np.zeros(3, np.int8)]
    assert (content_keys(ids, zeros) == content_keys(ids, None)).all()


def test_keys_dont_change_between_versions():
    # Stores outlive releases: this number may only change together with the store's format.
    key = content_keys([np.array([2, 5, 3], np.int32)], None)[0]
    assert [f"{part:016x}" for part in key] == ["ff5c318ec379fac5", "669b273128080de9"]


def test_long_examples_are_cut_and_counted():
    view, cut = encode(TOKENIZER, [" ".join(WORDS), "w1"], None, 10)
    assert cut == 1
    assert view.lengths.tolist() == [10, 3]
    expected = TOKENIZER(" ".join(WORDS), truncation=True, max_length=10)["input_ids"]
    assert ids_of(view, 0) == expected


def test_collating_nothing_gives_an_empty_batch():
    batch = collate(view_of(["w1"]), np.empty(0, np.int64), Padding(0))
    assert {tuple(tensor.shape) for tensor in batch.values()} == {(0, 1)}


def test_a_split_comes_back_from_disk_and_can_only_be_read(tmp_path):
    split = EncodedSplit(
        {STUDENT_VIEW: view_of(["w1 w2", "w3"]), "a.b": view_of(["w5", "w6 w7 w8"])},
        np.array([1, -1]),
    )
    split.save(tmp_path / "s")
    back = EncodedSplit.load(tmp_path / "s")
    assert back.labels.tolist() == [1, -1]
    for name, view in split.views.items():
        assert (back.views[name].input_ids == view.input_ids).all()
        assert (back.views[name].keys == view.keys).all()
        assert back.views[name].lengths.tolist() == view.lengths.tolist()
    with pytest.raises(ValueError, match="read-only"):
        back.labels[0] = 0
    assert not list((tmp_path / "s").glob("*.tmp"))


@pytest.mark.parametrize("damage", ["cut", "missing", "version"])
def test_a_damaged_split_is_an_error_that_says_what_to_do(tmp_path, damage):
    EncodedSplit({STUDENT_VIEW: view_of(["w1"])}, np.array([0])).save(tmp_path)
    path = tmp_path / "view-(student).arrow"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"raybrew-encoded-2", b"raybrew-encoded-0"))
    with pytest.raises(DataError, match=r"view-\(student\).*delete the folder"):
        EncodedSplit.load(tmp_path)


def test_vocabularies_are_compared_by_content():
    assert same_vocabulary(TOKENIZER, make_tokenizer())
    assert not same_vocabulary(TOKENIZER, make_tokenizer(WORDS[::-1]))


# Which rows are the same example, against NumPy's sort of whole rows.

# Few values, so that first halves meet with equal and with other second halves.
halves = st.sampled_from([0, 1, 2**63, 2**64 - 1])


@given(st.lists(st.tuples(halves, halves), max_size=40))
def test_the_first_row_of_each_key_and_each_rows_key(pairs):
    keys = np.array(pairs, np.uint64).reshape(-1, 2)
    first, number = distinct_keys(keys)
    _, expected = np.unique(keys, axis=0, return_index=True)
    assert first.tolist() == sorted(expected.tolist())
    assert first.dtype == number.dtype == np.int64
    assert np.array_equal(keys[first][number], keys)


@pytest.mark.parametrize("rows", [1, 5000])
def test_of_many_rows(rows):
    keys = np.random.default_rng(0).integers(0, 2**64, (rows, 2), dtype=np.uint64)
    keys[rows // 2 :: 3] = keys[0]
    first, number = distinct_keys(keys)
    _, expected = np.unique(keys, axis=0, return_index=True)
    assert np.array_equal(first, np.sort(expected))
    assert np.array_equal(keys[first][number], keys)


# Words reach a model as the text that they make, with spaces, whatever its tokenizer is like.

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
    view, (first_tokens,) = encode_words(TOKENIZERS[name], [words], 64)
    assert ids_of(view, 0) == TOKENIZERS[name](" ".join(words))["input_ids"]
    tokens = TOKENIZERS[name].convert_ids_to_tokens(ids_of(view, 0))
    firsts = [tokens[token] for token in first_tokens]
    assert [first.lstrip("Ġ▁")[:1] for first in firsts[1:]] == ["s", "l", "i", "l"]
    assert all(first[0] in "Ġ▁" for first in firsts[1:]), firsts


@pytest.mark.parametrize("name", TOKENIZERS)
@given(words=words_of)
def test_each_word_begins_at_its_own_token(name, words):
    tokenizer = TOKENIZERS[name]
    _, (firsts,) = encode_words(tokenizer, [words], 512)
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
    view, (found,) = encode_words(TOKENIZERS[name], [words], 12)
    expected = TOKENIZERS[name](words, is_split_into_words=True, truncation=True, max_length=12)
    assert ids_of(view, 0) == expected["input_ids"]
    word_ids = expected.word_ids()
    firsts = [word_ids.index(n) if n in word_ids else -1 for n in range(len(words))]
    assert found.tolist() == firsts


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_of_nothing_have_no_token_and_shift_no_other(name):
    tokenizer = TOKENIZERS[name]
    view, firsts = encode_words(tokenizer, [["", "john", " ", "smith ", ""], [], [""]], 64)
    alone, ((john, smith),) = encode_words(tokenizer, [["john", "smith"]], 64)
    assert ids_of(view, 0) == ids_of(alone, 0)
    assert [each.tolist() for each in firsts] == [[-1, john, -1, smith, -1], [], [-1]]


def test_a_word_that_is_a_special_token_keeps_its_place():
    view, ((john, special, smith),) = encode_words(
        TOKENIZERS["bytes"], [["john", "</s>", "smith"]], 64
    )
    tokens = TOKENIZERS["bytes"].convert_ids_to_tokens(ids_of(view, 0))
    assert tokens[smith] == "Ġsmith"
    assert 0 < john < special < smith
