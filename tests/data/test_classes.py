"""What labels mean: names of their own split, numbers as values or places, and what is missing."""

from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from raybrew.config import Task
from raybrew.data.classes import read_labels
from raybrew.errors import DataError
from raybrew.tasks import TASK_TYPES

ABC = ["A", "B", "C"]


def task(**changes: Any) -> Task:
    return Task(**{"name": "t", "train": "x", **changes})


def plain(labels: list[Any]) -> Dataset:
    return Dataset.from_dict({"text": ["a"] * len(labels), "label": labels})


def named(names: list[str], numbers: list[int | None]) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"text": ["a"] * len(numbers), "label": numbers}, features=features)


def read(train: Dataset, evaluation: Dataset | None = None, **changes: Any):
    names, labels, other = read_labels(task(**changes), train, evaluation)
    return list(names), labels.tolist(), None if other is None else other.tolist()


@pytest.mark.parametrize(
    ("evaluation", "expected"),
    [
        (named(["A", "C"], [1, 0, 1]), [2, 0, 2]),
        (named(["C", "B", "A"], [0, 1, 2]), [2, 1, 0]),
        (named(["c", "a"], [0, 1]), [2, 0]),
        (named(["D", "A"], [1, 1, -1, None]), [0, 0, -1, -1]),
        (plain(["C", "A", None]), [2, 0, -1]),
        (plain([2, 0]), [2, 0]),
    ],
)
def test_the_labels_of_a_split_mean_what_the_split_says(evaluation, expected):
    assert read(named(ABC, [0, 1, 2]), evaluation) == (ABC, [0, 1, 2], expected)


@pytest.mark.parametrize("train", [plain(["C", "A", "B"]), named(["B", "A", "C"], [2, 1, 0])])
def test_names_of_the_job_say_the_order_and_not_what_numbers_mean(train):
    names, labels, other = read(train, named(ABC, [0, 1, 2]), label_names=["C", "B", "A"])
    assert names == ["C", "B", "A"]
    assert labels == [0, 2, 1]
    assert other == [2, 1, 0]


def test_names_of_the_job_may_be_new_ones():
    asked = {"label_names": ["bad", "good"]}
    train = named(["neg", "pos"], [1, 0])
    assert read(train, named(["pos", "neg"], [0, 0, 1]), **asked)[1:] == ([1, 0], [1, 1, 0])
    assert read(train, named(["good", "bad"], [0, 1]), **asked)[1:] == ([1, 0], [1, 0])
    assert read(train, plain(["pos", "bad"]), **asked)[1:] == ([1, 0], [1, 0])
    with pytest.raises(DataError, match=r"tasks\[t\].label_names: expected the names.*neg, pos.*x"):
        read(train, label_names=["x", "y", "z"])


@pytest.mark.parametrize(
    ("train", "evaluation", "changes", "message"),
    [
        (named(ABC, [0, 1]), named(["D", "A"], [1, 0]), {}, r"eval: row 1.*A, B, C.*'D' \(0 in"),
        (plain([0, 1, 2]), named(ABC, [0]), {}, r"eval: row 0.*0, 1, 2.*got 'A' \(0 in the names"),
        (named(ABC, [0, 1]), None, {"label_names": ["A", "B"]}, None),
        (named(ABC, [0, 2]), None, {"label_names": ["A", "B"]}, r"train: row 1.*got 'C' \(2 in"),
        (
            named(ABC, [0, 1, 2]),
            plain([0]),
            {"label_names": ["C", "B", "A"]},
            r"eval: row 0.*got 0, which has no ClassLabel.*A, B, C.*write names",
        ),
        (named(["0", "10", "2"], [0, 1, 2]), plain([2]), {}, r"row 0.*got 2, which has no ClassL"),
        (named(ABC, [0, 1]), plain([-2]), {}, r"eval: row 0.*got -2"),
    ],
)
def test_labels_of_unknown_classes(train, evaluation, changes, message):
    if message is None:
        assert read(train, evaluation, **changes)[1] == [0, 1]
        return
    with pytest.raises(DataError, match=message):
        read(train, evaluation, **changes)


def test_numbers_written_as_texts_are_sorted_as_numbers():
    names = [str(n) for n in range(12)]
    assert read(plain(sorted(names)), plain(["10", "2"])) == (
        names,
        [names.index(name) for name in sorted(names)],
        [10, 2],
    )
    assert read(plain(["10", "-1", "1"]), plain([1, -1, 10]))[::2] == (
        ["-1", "1", "10"],
        [1, 0, 2],
    )
    assert read(plain(["9.5", "10", "x"]))[0] == ["10", "9.5", "x"]


@pytest.mark.parametrize(
    ("labels", "changes", "names", "expected"),
    [
        ([-1, 1, None, 1], {}, ["-1", "1"], [0, 1, -1, 1]),
        ([-1.0, 1.0, None], {}, ["-1", "1"], [0, 1, -1]),
        ([-1, 0, 1], {"label_names": ["-1", "0", "1"]}, ["-1", "0", "1"], [0, 1, 2]),
        ([-1, 0, 1], {"label_names": ["1", "-1", "0"]}, ["1", "-1", "0"], [1, 2, 0]),
        ([-1, 0, 1], {"label_names": ["no", "yes"]}, ["no", "yes"], [-1, 0, 1]),
        ([-1, 0, 1, 2], {}, ["0", "1", "2"], [-1, 0, 1, 2]),
        ([-100, 0, 1], {}, ["0", "1"], [-1, 0, 1]),
        ([-1, 1, -100], {"label_names": ["no", "yes"]}, ["no", "yes"], [0, 1, -1]),
        ([1, 2, 3], {"label_names": ["1", "2", "3"]}, ["1", "2", "3"], [0, 1, 2]),
        ([True, None, False], {}, ["False", "True"], [1, -1, 0]),
        ([True, False], {"label_names": ["no", "yes"]}, ["no", "yes"], [1, 0]),
        ([True, False], {"label_names": ["true", "false"]}, ["true", "false"], [0, 1]),
    ],
)
def test_numbers_and_bools(labels, changes, names, expected):
    assert read(plain(labels), **changes)[:2] == (names, expected)


def test_what_is_missing_in_an_evaluation_split_alone():
    assert read(plain([0, 1]), plain([-1, -100, 1]))[2] == [-1, -1, 1]
    assert read(plain([-1, 1]), plain([-1, -100, 1]))[2] == [0, -1, 1]


@pytest.mark.parametrize("labels", [[-1, 0, 1], [-2, 0, 1, 2], [-9, 1], [-1, 1, 2], [-1, 0]])
def test_negative_numbers_that_may_be_classes_or_missing(labels):
    with pytest.raises(DataError, match=rf"negative numbers.*\({labels[0]}\) may be.*label_names"):
        read(plain(labels))


@pytest.mark.parametrize("label", ["label", "tags"])
def test_a_missing_column_of_labels_names_those_that_are_there(label):
    kind = "token-classification" if label == "tags" else "sequence-classification"
    text = {"words": [["a"]]} if label == "tags" else {"text": ["a"]}
    rows = Dataset.from_dict({**text, "topic": ["x"]})
    with pytest.raises(DataError, match=rf"train: expected a column '{label}', got \w+, topic"):
        TASK_TYPES[kind].read(task(kind=kind), rows, None)


def tagged(names: list[str] | None, tags: list[list[Any]]) -> Dataset:
    item = Value("string") if names is None else ClassLabel(names=names)
    features = Features({"words": List(Value("string")), "tags": List(item)})
    words = [["w"] * len(each) for each in tags]
    return Dataset.from_dict({"words": words, "tags": tags}, features=features)


@pytest.mark.parametrize(
    "train",
    [tagged(["O", "B-X", "I-X"], [[0, 1, 2]]), tagged(None, [["O", "B-X", "I-X"]])],
)
def test_tags_mean_what_their_own_split_says(train):
    kind = "token-classification"
    evaluation = tagged(["I-X", "O"], [[0, 1], [-100, 1]])
    names, rows, found = TASK_TYPES[kind].read(task(kind=kind), train, evaluation)
    assert found is not None
    assert [names[n] for n in rows.labels[0]] == ["O", "B-X", "I-X"]
    assert [[names[n] if n >= 0 else None for n in each] for each in found.labels] == [
        ["I-X", "O"],
        [None, "O"],
    ]
