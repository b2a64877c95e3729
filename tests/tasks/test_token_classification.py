"""Words and tokens by hand: accents, emoji, Chinese, words that are cut or empty."""

import numpy as np
import pytest
import seqeval.metrics
from datasets import ClassLabel, Dataset, Features, List, Value

import raybrew as rb
from raybrew.data.split import IGNORED, STUDENT_VIEW, EncodedSplit
from raybrew.tasks import TASK_TYPES
from raybrew.tasks.token_classification import are_entities, word_metrics
from tests.tasks.made_models import TAGS, byte_pairs, wordpiece

KIND = TASK_TYPES["token-classification"]
STUDENT = wordpiece("is", "nice", "中", "国")


def task(**changes) -> rb.Task:
    return rb.Task(
        **{"name": "t", "kind": KIND.name, "train": "x.csv", "max_length": 16, **changes}
    )


def data(words: list[list[str]], tags: list) -> Dataset:
    return Dataset.from_dict({"words": words, "tags": tags})


def encoded(words: list[list[str]], tags: list, *, own=None, **changes) -> EncodedSplit:
    made = task(label_names=TAGS, **changes)
    _, rows, _ = KIND.read(made, data(words, tags), None)
    tokenizers = {STUDENT_VIEW: STUDENT} | ({"teacher": own} if own else {})
    return KIND.encode(made, rows, tokenizers)


def shown(split: EncodedSplit, row: int = 0) -> list[tuple[str, int]]:
    """Tokens of an example, each with its label."""
    begin, stop = split.student.offsets[row : row + 2]
    tokens = STUDENT.convert_ids_to_tokens(split.student.input_ids[begin:stop].tolist())
    return list(zip(tokens, split.labels[begin:stop].tolist(), strict=True))


_ = IGNORED


def test_a_word_speaks_through_its_first_token_also_with_accents():
    split = encoded([["Zürí", "is", "nice"]], [["B-LOC", "O", "O"]])
    assert shown(split) == [
        ("[CLS]", _),
        ("z", 3),
        ("##u", _),
        ("##r", _),
        ("##i", _),
        ("is", 0),
        ("nice", 0),
        ("[SEP]", _),
    ]


def test_chinese_is_one_token_a_character_and_the_word_speaks_through_the_first():
    split = encoded([["中国", "is", "nice"]], [["B-LOC", "O", "O"]])
    assert shown(split)[1:4] == [("中", 3), ("国", _), ("is", 0)]


def test_emoji_are_unknown_words_and_keep_their_label():
    split = encoded([["is", "🎉", "nice"]], [["O", "B-PER", "O"]])
    assert shown(split)[1:4] == [("is", 0), ("[UNK]", 1), ("nice", 0)]


def test_words_that_the_tokenizer_drops_are_counted_and_their_labels_dont_slip():
    # A zero-width space and a control character are nothing to BERT's normalizer.
    split = encoded([["is", "\u200b", "\x07", "nice"]], [["O", "B-PER", "B-PER", "B-LOC"]])
    assert shown(split)[1:3] == [("is", 0), ("nice", 3)]
    assert split.counts["words_unseen"] == 2
    assert split.counts["words"] == 4


def test_words_beyond_the_longest_input_are_counted_and_one_that_is_cut_keeps_its_start():
    split = encoded([["is", "abcdef", "nice"]], [["O", "B-PER", "O"]], max_length=6)
    assert shown(split) == [("[CLS]", _), ("is", 0), ("a", 1), ("##b", _), ("##c", _), ("[SEP]", _)]
    assert split.counts["words_unseen"] == 1


def test_unlabelled_words_are_positions_without_a_label():
    split = encoded([["is", "ab"], ["nice"]], [["O", None], None])
    assert shown(split)[1:4] == [("is", 0), ("a", -1), ("##b", _)]
    assert shown(split, 1)[1] == ("nice", -1)
    assert KIND.counts(split.labels) == (3, 1)


def test_a_teachers_own_tokens_answer_for_the_same_words():
    own = byte_pairs()
    words, tags = [["Zürí", "is", "nice"], ["中国", "🎉"]], [["O"] * 3, ["O"] * 2]
    split = encoded(words, tags, own=own)
    view, aligned = split.views["teacher"], split.alignments["teacher"]
    for row, sentence in enumerate(words):
        theirs = view.input_ids[view.offsets[row] : view.offsets[row + 1]]
        begin, stop = split.student.offsets[row : row + 2]
        places = [(t, a) for t, a in enumerate(aligned[begin:stop]) if a >= 0]
        assert len(places) == len(sentence)
        for word, (mine, place) in zip(sentence, places, strict=True):
            # Bytes of one word follow each other, a space before all words but the first.
            before = " ".join(sentence[: sentence.index(word)])
            assert place == len(before.encode()) + 1
            length = len(word.encode()) + bool(before)
            spelled = own.decode(theirs[place : place + length].tolist())
            assert spelled == f" {word}"[not before :]
            assert split.labels[begin + mine] == 0
    assert split.counts["words_unaligned_teacher"] == 0


def test_words_that_a_teacher_has_no_room_for_are_masked_and_counted():
    split = encoded([["is", "nice", "is", "nice"]], [["O"] * 4], own=byte_pairs(), max_length=10)
    # [CLS] i s Ġ n i c e Ġ [SEP]: of the third word there is a space, the last one is beyond.
    aligned = split.alignments["teacher"]
    assert aligned.tolist() == [-1, 1, 3, 8, -1, -1]
    assert split.counts["words_unaligned_teacher"] == 1


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        ([["a"], ["a", "b"]], [["O"], ["O"]], r"row 1: expected a tag for each of the 2 words"),
        ([["a"]], [["B-ORG"]], r"row 0: expected a label of.*O, B-PER.*got 'B-ORG'"),
    ],
)
def test_wrong_rows_are_named(words, tags, message):
    with pytest.raises(rb.DataError, match=rf"tasks\[t\]\.train: {message}"):
        encoded(words, tags)


def test_tags_are_lists():
    table = Dataset.from_dict({"words": [["a"]], "tags": ["O"]})
    with pytest.raises(rb.DataError, match="row 0: expected a list of tags in 'tags', got 'O'"):
        KIND.read(task(), table, None)


def test_a_missing_column_of_words_is_said_before_its_tags():
    table = Dataset.from_dict({"text": [["a"]], "tags": [["O"]]})
    with pytest.raises(rb.DataError, match="expected a column 'words', got text, tags"):
        KIND.read(task(), table, None)


def test_texts_are_no_words():
    table = Dataset.from_dict({"words": ["a b"], "tags": [["O", "O"]]})
    with pytest.raises(rb.DataError, match="row 0: expected a list of words in 'words', got 'a b'"):
        KIND.read(task(label_names=TAGS), table, None)


def test_missing_columns_are_said_with_the_nearest():
    with pytest.raises(rb.DataError, match=r"column 'tokens', got words, tags"):
        KIND.read(task(text="tokens", label_names=TAGS), data([["a"]], [["O"]]), None)


@pytest.mark.parametrize("asked", [{}, {"label_names": TAGS}])
def test_a_column_is_read_once_a_split(asked, monkeypatch):
    read, real = [], Dataset.__getitem__

    def reading(self, key):
        read.extend([(len(self), key)] if isinstance(key, str) else [])
        return real(self, key)

    monkeypatch.setattr(Dataset, "__getitem__", reading)
    train = data([["is"], ["nice", "is"]], [["O"], ["B-LOC", "O"]])
    names, rows, other = KIND.read(task(**asked), train, data([["is"]], [["O"]]))
    assert sorted(read) == [(1, "tags"), (1, "words"), (2, "tags"), (2, "words")]
    assert rows.texts == [["is"], ["nice", "is"]]
    assert other is not None
    assert [names[n] for n in rows.labels[1]] == ["B-LOC", "O"]
    assert [names[n] for n in other.labels[0]] == ["O"]


def test_classes_come_from_the_data():
    assert KIND.read(task(), data([["a", "b"]], [["x", "y"]]), None)[0] == ("x", "y")
    features = Features(
        {"words": List(Value("string")), "tags": List(ClassLabel(names=["u", "v"]))}
    )
    coded = Dataset.from_dict({"words": [["a"]], "tags": [[1]]}, features=features)
    names, rows, _ = KIND.read(task(), coded, None)
    assert names == ("u", "v")
    assert rows.labels[0].tolist() == [1]


def test_entities_are_metrics_as_seqeval_judges_them():
    generator = np.random.default_rng(0)
    true = [generator.integers(-1, 4, n) for n in (5, 9, 1, 7)]
    found = [generator.integers(0, 4, len(labels)) for labels in true]
    got = word_metrics(true, found, TAGS)
    names = [
        [
            [TAGS[c] for c, t in zip(side, labels, strict=True) if t >= 0]
            for side, labels in zip(sides, true, strict=True)
        ]
        for sides in (true, found)
    ]
    assert got["f1"] == pytest.approx(seqeval.metrics.f1_score(*names))
    assert got["precision"] == pytest.approx(seqeval.metrics.precision_score(*names))
    assert got["recall"] == pytest.approx(seqeval.metrics.recall_score(*names))
    assert got["accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(*names))
    assert got["examples"] == sum((labels >= 0).sum() for labels in true)


def test_entities_by_hand():
    # True: PER over two words and LOC; found: PER cut to its first word, and LOC.
    metrics = word_metrics([np.array([1, 2, 0, 3])], [np.array([1, 0, 0, 3])], TAGS)
    assert metrics["precision"] == metrics["recall"] == metrics["f1"] == 0.5
    assert metrics["accuracy"] == 0.75


def test_other_classes_have_no_entities():
    assert not are_entities(("NOUN", "VERB"))
    assert KIND.main_metric(("NOUN", "VERB")) == "accuracy"
    assert "f1" not in word_metrics([np.array([0])], [np.array([0])], ("NOUN", "VERB"))
    assert word_metrics([np.array([-1])], [np.array([0])], TAGS) == {"examples": 0.0}
