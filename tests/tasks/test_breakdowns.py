"""Labels, row scores and breakdowns of each task type, by hand values."""

import math
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

import raybrew as rb
from raybrew.data.payload import Payload
from raybrew.data.split import STUDENT_VIEW, EncodedSplit
from raybrew.tasks import TASK_TYPES
from tests.tasks.made_models import tokenizer_of


def encoded(kind: str, rows: list[dict[str, Any]], **task: Any) -> tuple[EncodedSplit, np.ndarray]:
    made = rb.Task.model_validate(
        {"name": "t", "kind": kind, "train": "unread", "max_length": 32, "stride": 4, **task}
    )
    task_type = TASK_TYPES[kind]
    _, read, _ = task_type.read(made, Dataset.from_list(rows), None)
    split = task_type.encode(made, read, {STUDENT_VIEW: tokenizer_of(kind)})
    return split, np.arange(len(split))


def test_classes():
    kind, names = TASK_TYPES["sequence-classification"], ("a", "b", "c")
    texts = [{"text": "w1", "label": label} for label in ["a", "a", "b", "b", None]]
    split, rows = encoded("sequence-classification", texts, label_names=names)
    # Predicted a b b b c; there is no c.
    logits = Payload(np.eye(3, dtype=np.float32)[[0, 1, 1, 1, 2]])
    true = kind.truth(split, rows, names)
    assert true == [{"label": "a"}, {"label": "a"}, {"label": "b"}, {"label": "b"}, None]
    scores = kind.row_scores(kind.decode(logits, split, rows, names), true, split)
    assert scores[:4].tolist() == [1, 0, 1, 1]
    assert math.isnan(scores[4])
    found = kind.breakdown(logits, split, rows, names)
    assert found is not None
    assert found.confusion is not None
    assert found.confusion.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert found.counts == [2, 2, 0]
    assert found.scores[:2] == pytest.approx([2 / 3, 4 / 5])
    assert math.isnan(found.scores[2])


def test_sets_of_classes():
    kind, names = TASK_TYPES["multi-label"], ("a", "b")
    labels = [["a"], ["a", "b"], [], None]
    texts = [{"text": "w1", "label": each} for each in labels]
    split, rows = encoded("multi-label", texts, label_names=names)
    logits = Payload(np.array([[1, 1], [1, 1], [-1, -1], [1, 1]], np.float32))
    true = kind.truth(split, rows, names)
    assert [None if each is None else each["labels"] for each in true] == labels
    scores = kind.row_scores(kind.decode(logits, split, rows, names), true, split)
    assert scores[:3].tolist() == [0.5, 1, 1]
    assert math.isnan(scores[3])
    found = kind.breakdown(logits, split, rows, names)
    assert found is not None
    assert (found.counts, found.scores) == ([2, 1], [1.0, pytest.approx(2 / 3)])


def test_numbers():
    kind = TASK_TYPES["regression"]
    texts = [{"text": "w1", "label": float(n)} for n in (0, 1, 4, 5)]
    split, rows = encoded("regression", [*texts, {"text": "w1", "label": None}])
    values = Payload(np.array([[0.5], [1], [2], [4], [0]], np.float32))
    true = kind.truth(split, rows, ("label",))
    assert true == [{"value": 0.0}, {"value": 1.0}, {"value": 4.0}, {"value": 5.0}, None]
    scores = kind.row_scores(kind.decode(values, split, rows, ("label",)), true, split)
    assert scores[:4].tolist() == [-0.5, 0, -2, -1]
    found = kind.breakdown(values, split, rows, ("label",))
    assert found is not None
    assert found.groups == ["0 to 1", "1 to 2", "2 to 3", "3 to 4", "4 to 5"]
    assert found.counts == [1, 1, 0, 0, 2]
    assert found.scores[:2] + found.scores[4:] == [0.5, 0.0, 1.5]


def test_words():
    kind, names = TASK_TYPES["token-classification"], ("O", "B-PER", "I-PER", "B-LOC")
    rows_of_words = [
        {"words": ["w1", "w2", "w3"], "tags": ["B-PER", "I-PER", "O"]},
        {"words": ["w1", "w2"], "tags": ["B-LOC", None]},
        {"words": ["w1"], "tags": None},
    ]
    split, rows = encoded("token-classification", rows_of_words, label_names=names)
    predicted = Payload(np.array([1, 0, 0, 3, 3, 1]), np.array([0, 3, 5, 6]))
    true = kind.truth(split, rows, names)
    assert true == [{"tags": ["B-PER", "I-PER", "O"]}, {"tags": ["B-LOC", None]}, None]
    found = kind.decode(predicted, split, rows, names)
    assert [each["tags"] for each in found] == [["B-PER", "O", "O"], ["B-LOC", "B-LOC"], ["B-PER"]]
    scores = kind.row_scores(found, true, split)
    assert scores[:2].tolist() == [pytest.approx(2 / 3), 1.0]
    by = kind.breakdown(predicted, split, rows, names)
    assert by is not None
    # A person cut short is no person; the unknown word counts for nothing.
    assert (by.groups, by.counts, by.scores) == (["LOC", "PER"], [1, 1], [1.0, 0.0])
    tags = ("O", "B-PER", "I-PER", "noun")
    by = kind.breakdown(predicted, split, rows, tags)
    assert by is not None
    assert (by.groups, by.counts) == (list(tags), [1, 1, 1, 1])
    assert by.scores == pytest.approx([2 / 3, 1.0, 0.0, 1.0])


def test_answers():
    kind = TASK_TYPES["question-answering"]
    passage = "w1 w2 w3 w4 w5 w6"
    questions = [
        {"question": "w0", "context": passage, "answers": {"text": [t], "answer_start": [at]}}
        for t, at in (("w2", 3), ("w4 w5", 9))
    ]
    none = {"question": "w0", "context": passage, "answers": {"text": [], "answer_start": []}}
    split, rows = encoded("question-answering", [*questions, none])
    true = kind.truth(split, rows, ())
    assert true == [{"answers": ["w2"]}, {"answers": ["w4 w5"]}, {"answers": []}]
    found = [{"answer": "w2"}, {"answer": "w4"}, {"answer": ""}]
    assert kind.row_scores(found, true, split) == pytest.approx([1, 2 / 3, 1])
    # Scores that point at the right places.
    scores = np.full((len(split.student.input_ids), 2), -9.0, np.float32)
    for row in rows:
        begin = split.student.offsets[row]
        scores[begin + split.labels[row, 0], 0] = scores[begin + split.labels[row, 1], 1] = 9
    payload = Payload(scores.reshape(-1), split.student.offsets * 2)
    by = kind.breakdown(payload, split, rows, ())
    assert by is not None
    assert by.groups == ["no answer", "1", "2", "3 to 4", "5 to 8", "9 or more"]
    assert by.counts == [1, 1, 1, 0, 0, 0]
    assert by.scores[:3] == [1, 1, 1]
    assert np.isnan(by.scores[3:]).all()


def test_tokens_of_texts():
    kind = TASK_TYPES["causal-lm"]
    split, rows = encoded("causal-lm", [{"text": "w1 w2 w3"}, {"text": " ".join(["w1"] * 19)}])
    counts = [3, 19]  # each text ends with a token of its own
    right = np.concatenate([[1, 0, 1], np.arange(19) < 17]).astype(float)
    values = np.stack([np.ones(len(right)), right], axis=1)
    predicted = Payload(values.reshape(-1), np.cumsum([0, *counts]) * 2)
    found = kind.decode(predicted, split, rows, ())
    assert [each["tokens"] for each in found] == counts
    assert kind.row_scores(found, kind.truth(split, rows, ()), split) == pytest.approx(
        [2 / 3, 17 / 19]
    )
    by = kind.breakdown(predicted, split, rows, ())
    assert by is not None
    assert (by.groups, by.counts) == (["0 to 15", "16 to 18"], [19, 3])
    assert by.scores == pytest.approx([18 / 19, 1 / 3])
