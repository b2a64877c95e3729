"""Texts as windows of tokens that are each predicted once; perplexity as torchmetrics has it."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from torchmetrics.functional.text import perplexity

import raybrew as rb
from raybrew.data.split import IGNORED, STUDENT_VIEW, EncodedSplit
from raybrew.kinds import KINDS
from raybrew.labels.payload import Payload
from tests.kinds.made_kinds import lm_tokenizer

KIND = KINDS["causal-lm"]
TOKENIZER = lm_tokenizer()
END = TOKENIZER.convert_tokens_to_ids("</s>")


def encoded(texts: list[str], follow: list[str] | None = None, max_length: int = 8) -> EncodedSplit:
    columns = {"text": texts} | ({"then": follow} if follow else {})
    task = rb.Task(
        name="t",
        kind="causal-lm",
        train="x.csv",
        text_pair="then" if follow else None,
        max_length=max_length,
    )
    _, rows, _ = KIND.read(task, Dataset.from_dict(columns), None)
    return KIND.encode(task, rows, {STUDENT_VIEW: TOKENIZER})


def windows(split: EncodedSplit) -> list[tuple[list[int], list[int]]]:
    bounds = zip(split.student.offsets[:-1], split.student.offsets[1:], strict=True)
    return [(split.student.input_ids[a:b].tolist(), split.labels[a:b].tolist()) for a, b in bounds]


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def test_each_token_but_the_first_is_predicted_once():
    text = " ".join(f"w{n}" for n in range(10))
    split = encoded([text, "w1 w2"])
    whole = [*ids(text), END]
    assert windows(split) == [
        (whole[:8], whole[1:9]),
        (whole[8:], [*whole[9:], IGNORED]),
        ([*ids("w1 w2"), END], [*ids("w2"), END, IGNORED]),
    ]
    assert split.source is not None
    assert split.source.tolist() == [0, 0, 1]
    assert KIND.counts(split.labels) == (12, 12)


def test_prompts_are_read_and_not_learnt():
    split = encoded(["w1 w2", "w3 w4 w5"], ["w6", "w7 w8 w9"], max_length=6)
    assert windows(split) == [
        ([*ids("w1 w2 w6"), END], [IGNORED, *ids("w6"), END, IGNORED]),
        (ids("w3 w4 w5 w7 w8 w9"), [IGNORED, IGNORED, *ids("w7 w8 w9"), END]),
    ]
    assert split.counts["truncated"] == 1


def test_perplexity_is_that_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 11, generator=generator)
    labels = torch.randint(0, 11, (3, 7), generator=generator)
    labels[1, 4:] = IGNORED
    kept = labels != IGNORED
    predicted = KIND.predict([logits[kept]], [labels[kept]])
    offsets = np.array([0, 7, 11, 18]) * 2
    got = KIND.metrics(
        Payload(predicted.reshape(-1).numpy(), offsets), encoded(["w1"]), np.arange(3), ()
    )
    expected = float(perplexity(logits, labels, ignore_index=IGNORED))
    assert got["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert got["loss"] == pytest.approx(math.log(expected), rel=1e-5)
    assert got["token_probability"] == pytest.approx(1 / expected, rel=1e-5)
    assert got["accuracy"] == pytest.approx(
        float((logits.argmax(-1) == labels)[kept].double().mean())
    )
    assert got["examples"] == 18
