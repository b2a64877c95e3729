"""Accuracy, size and latency of a saved model, and what a difference between two is worth."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from raybrew.data.encoding import encode
from raybrew.data.split import STUDENT_VIEW, EncodedSplit, Padding
from raybrew.evaluation.predict import ModelOnDevice, predict
from raybrew.models.parameters import count_parameters, latency_ms, size_mb
from raybrew.models.pretrained import quiet_transformers
from raybrew.tasks import TASK_TYPES
from raybrew.tasks.adaptors import one_output

LATENCY_SENTENCES = 64


@dataclass(frozen=True)
class Judged:
    correct: np.ndarray
    parameters: int
    megabytes: float
    latency_ms: float

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    def figures(self) -> dict[str, float]:
        return {
            "accuracy": self.accuracy,
            "parameters": self.parameters,
            "megabytes": self.megabytes,
            "latency_ms": self.latency_ms,
        }


def judge(folder: Path, test: Dataset, max_length: int) -> Judged:
    """Load a folder as any user of transformers would, and look at it."""
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    texts: list[str] = test["text"][:]
    view, _ = encode(tokenizer, texts, None, max_length)
    split = EncodedSplit({STUDENT_VIEW: view}, np.array(test["label"]))
    logits = predict(
        ModelOnDevice(
            model,
            one_output,
            Padding(int(str(tokenizer.pad_token_id))),
            torch.device("cpu"),
        ),
        TASK_TYPES["sequence-classification"],
        split,
        np.arange(len(split)),
        batch_size=64,
    ).values
    sentences = [
        dict(tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt"))
        for text in texts[:LATENCY_SENTENCES]
    ]
    return Judged(
        correct=logits.argmax(axis=-1) == split.labels,
        parameters=count_parameters(model),
        megabytes=size_mb(model),
        latency_ms=latency_ms(model, sentences)[0],
    )


def verdict(alone: list[Judged], distilled: list[Judged]) -> str:
    """Say what distilling changed, and what these numbers show of it."""
    if len(alone) == 1:
        return _one_seed(alone[0], distilled[0])
    before, after = (np.array([one.accuracy for one in each]) for each in (alone, distilled))
    margin, spread = after.mean() - before.mean(), max(np.ptp(before), np.ptp(after))
    shown = "more" if abs(margin) > spread else "not more"
    return (
        f"Distilled minus alone: {100 * margin:+.1f} points on average over {len(alone)} seeds, "
        f"{shown} than the spread over seeds ({100 * spread:.1f} points, the larger of both).\n"
    )


def _one_seed(alone: Judged, distilled: Judged) -> str:
    paired = distilled.correct.astype(float) - alone.correct
    points = 100 * paired.mean()
    error = 100 * paired.std(ddof=1) / np.sqrt(len(paired))
    shown = "beyond" if abs(points) > 2 * error else "within"
    return (
        f"Distilled minus alone: {points:+.1f} points, {shown} what chance gives on "
        f"{len(paired)} examples (2 standard errors: {2 * error:.1f}); one seed.\n"
    )
