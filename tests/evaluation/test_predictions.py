"""What a saved model answers to rows without labels, against the bare model of transformers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

import raybrew as rb
from raybrew.evaluation.saved_models import open_model, task_type_in
from tests.made import CLASSES, make_data, make_model, make_tokenizer
from tests.tasks.made_models import TAGS, TOPICS, make_rows, make_task_model, tokenizer_of

LABELS = ("label", "tags", "answers")


def rows_of(kind: str) -> Dataset:
    rows = make_data(11) if kind == "sequence-classification" else make_rows(kind, 11)
    return rows.remove_columns([name for name in rows.column_names if name in LABELS])


def saved(kind: str, folder: Path, **task) -> tuple:
    if kind == "sequence-classification":
        path = make_model(folder, 0)
    else:
        path = make_task_model(folder, kind, 0)
    values = {"name": "t", "kind": kind, "train": "unread.parquet", "max_length": 48, **task}
    return open_model(path, rb.Task.model_validate(values)), path


def flat(model, rows: Dataset, block: int) -> list[dict]:
    blocks = list(model.predictions(rows, "rows", batch_size=4, block=block))
    assert all(len(each) <= block for each in blocks)
    return [row for each in blocks for row in each]


KINDS = [
    "sequence-classification",
    "multi-label",
    "regression",
    "token-classification",
    "question-answering",
    "causal-lm",
]


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_has_one_prediction_however_rows_are_blocked(kind, tmp_path):
    # Short inputs, so that questions and texts become several examples.
    model, _ = saved(kind, tmp_path / "m", max_length=32, stride=4)
    rows = rows_of(kind)
    whole, parts = flat(model, rows, 100), flat(model, rows, 4)
    assert len(whole) == len(rows)
    for one, other in zip(whole, parts, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert value == (pytest.approx(other[key], rel=1e-4) if _numeric(value) else other[key])


def _numeric(value) -> bool:
    return isinstance(value, float) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], float)
    )


def outputs(kind: str, path: str, model, *texts: str):
    tokenizer: Any = make_tokenizer() if kind == "sequence-classification" else tokenizer_of(kind)
    bare = model.kind.model_class.from_pretrained(path).eval()
    with torch.inference_mode():
        return bare(**tokenizer(*texts, return_tensors="pt"))


def test_classes_have_the_softmax_of_the_bare_model(tmp_path):
    kind = "sequence-classification"
    model, path = saved(kind, tmp_path / "m")
    rows = rows_of(kind)
    for row, found in zip(rows.to_list(), flat(model, rows, 4), strict=True):
        expected = outputs(kind, path, model, row["text"]).logits[0].softmax(-1)
        assert found["label"] == CLASSES[int(expected.argmax())]
        assert found["probability"] == pytest.approx(float(expected.max()), rel=1e-4)


def test_sets_of_classes_and_numbers(tmp_path):
    model, path = saved("multi-label", tmp_path / "m")
    rows = rows_of("multi-label")
    for row, found in zip(rows.to_list(), flat(model, rows, 4), strict=True):
        expected = outputs("multi-label", path, model, row["text"]).logits[0].sigmoid()
        there = [n for n in range(3) if expected[n] >= 0.5]
        assert found["labels"] == [TOPICS[n] for n in there]
        assert found["probabilities"] == pytest.approx([float(expected[n]) for n in there])
    model, path = saved("regression", tmp_path / "r")
    rows = rows_of("regression")
    for row, found in zip(rows.to_list(), flat(model, rows, 4), strict=True):
        expected = outputs("regression", path, model, row["text"]).logits[0, 0]
        assert found == {"value": pytest.approx(float(expected), rel=1e-4, abs=1e-5)}


def test_every_word_has_a_tag_and_words_that_were_cut_have_none(tmp_path):
    kind = "token-classification"
    model, path = saved(kind, tmp_path / "m", max_length=8)
    rows = rows_of(kind)
    lengths = [len(row["words"]) for row in rows.to_list()]
    assert max(lengths) > 6 > min(lengths), "two tokens are special"
    for row, found in zip(rows.to_list(), flat(model, rows, 4), strict=True):
        tags = found["tags"]
        assert len(tags) == len(row["words"])
        assert tags[6:] == [None] * len(tags[6:])
        if len(tags) <= 6:  # one token a word
            logits = outputs(kind, path, model, " ".join(row["words"])).logits[0]
            assert tags == [TAGS[int(n)] for n in logits.argmax(-1)[1:-1]]


def test_an_answer_is_of_the_passage_and_its_score_a_probability(tmp_path):
    kind = "question-answering"
    model, path = saved(kind, tmp_path / "m", max_length=64)
    rows = rows_of(kind)
    for row, found in zip(rows.to_list(), flat(model, rows, 4), strict=True):
        assert found["answer"]
        assert found["answer"] in row["context"]
        answered = outputs(kind, path, model, row["question"], row["context"])
        if answered.start_logits.shape[1] <= 64:  # one window
            starts, ends = answered.start_logits[0].softmax(-1), answered.end_logits[0].softmax(-1)
            assert 0 < found["score"] <= float((starts[:, None] * ends).max()) * 1.0001


def test_a_text_has_the_loss_of_the_bare_model_over_all_its_windows(tmp_path):
    kind = "causal-lm"
    model, path = saved(kind, tmp_path / "m")
    rows = rows_of(kind)
    for row, found in zip(rows.to_list(), flat(model, rows, 4), strict=True):
        tokenizer = tokenizer_of(kind)
        ids = torch.tensor([[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]])
        bare = model.kind.model_class.from_pretrained(path).eval()
        with torch.inference_mode():
            loss = float(bare(input_ids=ids, labels=ids).loss)
        assert found["loss"] == pytest.approx(loss, rel=1e-4)
        assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-3)
        assert found["tokens"] == ids.shape[1] - 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_says_its_task_type(kind, tmp_path):
    model, path = saved(kind, tmp_path / "m")
    if model.kind.problem_type:
        bare = model.hosted.model
        bare.config.problem_type = model.kind.problem_type
        bare.save_pretrained(path)
    assert task_type_in(path) == kind


def test_rows_without_the_texts_are_refused_by_name(tmp_path):
    model, _ = saved("sequence-classification", tmp_path / "m")
    with pytest.raises(rb.DataError, match=r"news\.csv: expected a column 'text', got body"):
        next(model.predictions(Dataset.from_dict({"body": ["a"]}), "news.csv"))
