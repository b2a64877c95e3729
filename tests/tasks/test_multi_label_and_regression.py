"""Multi-label and regression: rows by hand, metrics against scikit-learn and SciPy."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from datasets import ClassLabel, Dataset, Features, List, Value

import raybrew as rb
from raybrew.data.payload import Payload
from raybrew.data.sources import load_source
from raybrew.data.split import STUDENT_VIEW, EncodedSplit
from raybrew.tasks import TASK_TYPES
from raybrew.tasks.regression import regression_metrics
from tests.made import make_tokenizer
from tests.tasks.made_models import TOPICS

SETS, NUMBERS = TASK_TYPES["multi-label"], TASK_TYPES["regression"]


def task(kind: str, **changes) -> rb.Task:
    return rb.Task(**{"name": "t", "kind": kind, "train": "x.csv", "max_length": 16, **changes})


def rows_of(kind, labels: list, **changes):
    table = Dataset.from_dict({"text": ["w1 w2"] * len(labels), "label": labels})
    return kind.read(task(kind.name, **changes), table, None)


@pytest.mark.parametrize(
    ("labels", "changes", "names", "expected"),
    [
        ([["b"], [], ["a", "b"], None], {}, ("a", "b"), [[0, 1], [0, 0], [1, 1], [-1, -1]]),
        ([[2], [0, 1]], {}, ("0", "1", "2"), [[0, 0, 1], [1, 1, 0]]),
        ([["art"]], {"label_names": TOPICS}, TOPICS, [[0, 0, 1]]),
        ([[True, False], [False, True]], {}, ("0", "1"), [[1, 0], [0, 1]]),
        ([[1, 0], [0, 1], [1, 0]], {}, ("0", "1"), [[1, 0], [0, 1], [1, 0]]),
        ([[0, 1], [1, 1], None], {}, ("0", "1"), [[0, 1], [1, 1], [-1, -1]]),
        ([[0.0, 1.0], [1.0, 0.0]], {"label_names": ["a", "b"]}, ("a", "b"), [[0, 1], [1, 0]]),
        ([[1, 0, 0], [0, 1, 1]], {}, ("0", "1", "2"), [[1, 0, 0], [0, 1, 1]]),
        ([[1, 0, 0], [0, 1, 1]], {"label_names": TOPICS}, TOPICS, [[1, 0, 0], [0, 1, 1]]),
        ([[1, 0], [0, 1]], {"label_names": TOPICS}, TOPICS, [[1, 1, 0], [1, 1, 0]]),
        # Numbers as names give the order, of classes and of flags.
        ([[0], [1, 2]], {"label_names": ["2", "0", "1"]}, ("2", "0", "1"), [[0, 1, 0], [1, 0, 1]]),
        (
            [[True, False, False], [False, True, True], None],
            {"label_names": ["2", "0", "1"]},
            ("2", "0", "1"),
            [[0, 1, 0], [1, 0, 1], [-1, -1, -1]],
        ),
        ([[1, 0, 0]], {"label_names": ["1", "2", "3"]}, ("1", "2", "3"), [[1, 0, 0]]),
        ([[1, 0], [0, 1], []], {}, ("0", "1"), [[1, 1], [1, 1], [0, 0]]),
        ([[0], [1]], {}, ("0", "1"), [[1, 0], [0, 1]]),
    ],
)
def test_sets_of_classes(labels, changes, names, expected):
    found, rows, _ = rows_of(SETS, labels, **changes)
    assert found == names
    assert rows.labels.tolist() == expected
    assert SETS.num_labelled(rows) == sum(any(c >= 0 for c in row) for row in expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["art"], ["arts"]], r"row 1: expected a label.*sport, money, art.*got 'arts'"),
        ([[True, False]], r"row 0: expected true or false for each of the 3 classes.*got 2"),
        ([[1], [1, 0, 1]], r"row 1: expected each class once.*got \[1, 0, 1\].*true or false"),
        ([[0], [-1]], r"row 1: expected classes.*got \[-1\].*null"),
        ([[[0]]], r"row 0: expected a class as a name.*got \[0\]"),
        ([[0.5, 0.0, 1.0]], r"row 0: expected a class as a name.*got 0\.5"),
    ],
)
def test_wrong_sets_are_named(labels, message):
    with pytest.raises(rb.DataError, match=rf"tasks\[t\].train: {message}"):
        rows_of(SETS, labels, label_names=TOPICS)


def test_zeros_and_ones_that_may_be_classes_or_flags_are_refused():
    with pytest.raises(rb.DataError, match=r"tasks\[t\]: 'label' holds \[0, 1\] in every row"):
        rows_of(SETS, [[0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("other", "expected"), [([[1, 0], [1, 0]], [[1, 0], [1, 0]]), ([[0], [1]], [[1, 0], [0, 1]])]
)
def test_what_zeros_and_ones_mean_is_decided_over_both_splits(other, expected):
    # [0, 1] alone could be either: the evaluation rows tell.
    train, evaluation = (
        Dataset.from_dict({"text": ["w1"] * 2, "label": each}) for each in ([[0, 1], [0, 1]], other)
    )
    names, rows, found = SETS.read(task("multi-label"), train, evaluation)
    assert found is not None
    assert names == ("0", "1")
    assert found.labels.tolist() == expected
    assert rows.labels.tolist() == ([[0, 1]] * 2 if expected == other else [[1, 1]] * 2)


def test_classes_of_sets_are_those_of_the_names_of_their_own_split():
    def split(names, labels):
        features = Features({"text": Value("string"), "label": List(ClassLabel(names=names))})
        rows = {"text": ["w1"] * len(labels), "label": labels}
        return Dataset.from_dict(rows, features=features)

    train = split(["a", "b", "c"], [[0, 1], [2]])
    names, rows, evaluation = SETS.read(
        task("multi-label"), train, split(["c", "a"], [[0], [1, 0], []])
    )
    assert names == ("a", "b", "c")
    assert rows.labels.tolist() == [[1, 1, 0], [0, 0, 1]]
    assert evaluation is not None
    assert evaluation.labels.tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0]]


def test_a_column_of_sets_is_read_once_a_split(monkeypatch):
    read, real = [], Dataset.__getitem__

    def reading(self, key):
        read.extend([(len(self), key)] if isinstance(key, str) else [])
        return real(self, key)

    monkeypatch.setattr(Dataset, "__getitem__", reading)
    train = Dataset.from_dict({"text": ["w1", "w2"], "label": [["b"], ["a", "b"]]})
    other = Dataset.from_dict({"text": ["w1"], "label": [["a"]]})
    names, rows, evaluation = SETS.read(task("multi-label"), train, other)
    assert sorted(read) == [(1, "label"), (1, "text"), (2, "label"), (2, "text")]
    assert names == ("a", "b")
    assert rows.labels.tolist() == [[0, 1], [1, 1]]
    assert evaluation is not None
    assert evaluation.labels.tolist() == [[1, 0]]


def test_names_that_come_twice_or_thrice_are_said_once_in_order():
    with pytest.raises(ValueError, match="expected different `label_names`, got a, c twice"):
        task("multi-label", label_names=["c", "b", "a", "c", "a", "c"])


@pytest.mark.parametrize("names", [TOPICS, None])
def test_a_class_alone_is_no_set(names):
    with pytest.raises(rb.DataError, match="row 0: expected a list of classes"):
        rows_of(SETS, ["art"], label_names=names)


def test_numbers_of_a_csv_file_may_be_missing(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\nNA,1.5\nb,nan\nc,NA\nd,\n")
    _, rows, _ = NUMBERS.read(task("regression"), load_source(str(path), "t"), None)
    assert rows.texts[0] == "NA"
    assert rows.labels[0] == 1.5
    assert np.isnan(rows.labels[1:]).all()


def split_of(labels: np.ndarray) -> EncodedSplit:
    made = task("multi-label", label_names=TOPICS)
    table = Dataset.from_dict({"text": ["w1"] * len(labels), "label": [["art"]] * len(labels)})
    _, rows, _ = SETS.read(made, table, None)
    views = SETS.encode(made, rows, {STUDENT_VIEW: make_tokenizer()}).views
    return EncodedSplit(views, labels)


def test_metrics_of_sets_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (40, 3))
    logits = generator.normal(size=(40, 3)).astype(np.float32)
    labels[7] = -1
    order = generator.permutation(40)
    got = SETS.metrics(Payload(logits[order]), split_of(labels), order, TOPICS)
    known = labels[:, 0] >= 0
    true, found = labels[known], logits[known] > 0
    assert got["f1_micro"] == pytest.approx(sklearn.metrics.f1_score(true, found, average="micro"))
    assert got["f1_macro"] == pytest.approx(sklearn.metrics.f1_score(true, found, average="macro"))
    assert got["exact_match"] == pytest.approx(sklearn.metrics.accuracy_score(true, found))
    assert got["examples"] == 39


def test_numbers():
    names, rows, _ = rows_of(NUMBERS, [1, 2.5, None])
    assert names == ("label",)
    np.testing.assert_array_equal(rows.labels, np.array([[1], [2.5], [math.nan]], np.float32))
    assert NUMBERS.num_labelled(rows) == 2
    names, rows, _ = rows_of(NUMBERS, [[1.0, 2.0], [3.0, None]])
    assert names == ("label_0", "label_1")
    assert rows.labels.shape == (2, 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1.0, 2.0], [1.0]], r"row 1: expected 2 finite numbers in 'label', got \[1.0\]"),
        (["much"], r"row 0: expected a finite number up to ±3\.4e\+38 in 'label', got 'much'"),
        ([1e300], r"row 0: expected a finite number up to ±3\.4e\+38 in 'label', got 1e\+300"),
        ([[], []], r"row 0: expected a finite number in 'label', got \[\]"),
    ],
)
def test_wrong_numbers_are_named(labels, message):
    with pytest.raises(rb.DataError, match=rf"tasks\[t\].train: {message}"):
        rows_of(NUMBERS, labels)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_metrics_of_numbers_are_those_of_scipy(scale):
    generator = np.random.default_rng(0)
    found, true = generator.normal(size=(2, 50, 1)) * scale
    true[3] = math.nan
    got = regression_metrics(torch.from_numpy(found), torch.from_numpy(true))
    known = ~np.isnan(true[:, 0])
    a, b = found[known, 0], true[known, 0]
    assert got["pearson"] == pytest.approx(scipy.stats.pearsonr(a, b)[0])
    assert got["spearman"] == pytest.approx(scipy.stats.spearmanr(a, b)[0])
    assert got["mse"] == pytest.approx(np.square(a - b).mean())
    assert got["examples"] == 49


def test_constants_have_no_correlation():
    got = regression_metrics(torch.ones(4, 1), torch.arange(4.0)[:, None])
    assert math.isnan(got["pearson"])
    assert got["mse"] == pytest.approx((1 + 0 + 1 + 4) / 4)
