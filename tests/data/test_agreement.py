import copy
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from raybrew.data.agreement import MIN_ROWS, better_order, encoding_difference, order_problem
from raybrew.data.encoding import same_vocabulary
from tests.made import like_bert, make_tokenizer

# When predictions fit labels far better in another order of the classes, and when that is luck.


def flags(numbers: np.ndarray, classes: int) -> np.ndarray:
    return numbers[:, None] == np.arange(classes)


def noisy(true: np.ndarray, right: float, classes: int, rng: np.random.Generator) -> np.ndarray:
    guess = rng.integers(0, classes, len(true))
    return np.where(rng.random(len(true)) < right, true, guess)


@pytest.mark.parametrize("shares", [None, [0.9, 0.04, 0.04, 0.02]])
@pytest.mark.parametrize("right", [1.0, 0.6])
def test_another_order_is_found(shares, right):
    rng = np.random.default_rng(0)
    order = np.array([2, 0, 3, 1])  # the model's number of each class
    true = rng.choice(4, 600, p=shares)
    found = better_order(flags(true, 4), flags(order[noisy(true, right, 4, rng)], 4))
    assert found is not None
    assert found.order == tuple(order)
    assert found.num_rows == 600
    assert found.accuracy_in_order > max(0.6, found.accuracy)


def test_another_order_of_sets_is_found():
    rng = np.random.default_rng(0)
    true = rng.random((300, 3)) < [0.5, 0.3, 0.2]
    wrong = rng.random((300, 3)) < 0.1
    found = better_order(true, (true ^ wrong)[:, [1, 2, 0]])
    assert found is not None
    assert found.order == (2, 0, 1)
    assert better_order(true, true ^ wrong) is None


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("classes", [2, 5, 40])
def test_what_guesses_has_no_better_order(seed, classes):
    rng = np.random.default_rng(seed)
    true, guessed = rng.integers(0, classes, (2, 300))
    assert better_order(flags(true, classes), flags(guessed, classes)) is None


@pytest.mark.parametrize("seed", range(5))
def test_what_is_weak_or_always_the_same_has_none(seed):
    rng = np.random.default_rng(seed)
    true = rng.choice(3, 300, p=[0.8, 0.1, 0.1])
    weak = noisy(true, 0.2, 3, rng)
    assert better_order(flags(true, 3), flags(weak, 3)) is None
    # The rarest class for all rows: the commonest in its place would be right for 80 %.
    assert better_order(flags(true, 3), flags(np.full(300, 2), 3)) is None


def test_few_rows_tell_nothing():
    true = np.arange(MIN_ROWS) % 2
    assert better_order(flags(true, 2), flags(1 - true, 2)) is not None
    assert better_order(flags(true[1:], 2), flags(1 - true[1:], 2)) is None
    assert better_order(np.empty((0, 2), bool), np.empty((0, 2), bool)) is None


def test_classes_that_no_row_has_stay_where_they_are():
    true = np.arange(100) % 2
    found = better_order(flags(true, 4), flags(1 - true, 4))
    assert found is not None
    assert found.order == (1, 0, 2, 3)


def test_rows_sorted_by_class_tell_as_much():
    true = np.sort(np.arange(200) % 4)
    found = better_order(flags(true, 4), flags(3 - true, 4))
    assert found is not None
    assert found.order == (3, 2, 1, 0)


def test_the_message_shows_the_order_as_label_names():
    true = np.arange(90) % 3
    both = flags(true, 3), flags((true + 1) % 3, 3)
    message = order_problem(both, "teachers[a].model", ("x", "y", "z"), task="t", side="eval")
    # The model's class 0 stands for z, 1 for x, 2 for y.
    assert message is not None
    assert "teachers[a].model: no names say" in message
    assert "0.0% are right for 90 labels of tasks[t].eval, and 100.0% in another" in message
    # In quotes: in YAML names such as 1 are no texts.
    assert 'set tasks[t].label_names: ["z", "x", "y"],' in message
    right = (both[0], both[0])
    assert order_problem(right, "m", ("x", "y", "z"), task="t", side="eval") is None


# Tokenizers of one vocabulary that make something else of a text, one way at a time.

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
    ("teacher", "student", "message"),
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
def test_what_texts_become_is_compared_not_vocabularies_alone(teacher, student, message):
    found = difference(teacher, student)
    assert found is not None
    assert re.search(message, found), found


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
