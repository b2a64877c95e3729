"""Accuracy, size and latency of a saved model, and what a difference between two is worth."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from raybrew.data.encoding import encode
from raybrew.evaluation import predict_logits
from raybrew.models.adaptors import sequence_classification
from raybrew.models.parameters import count_parameters, latency_ms, size_mb
from raybrew.models.pretrained import quiet_transformers

MAX_LENGTH, LATENCY_SENTENCES = 24, 64


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


def judge(folder: Path, test: Dataset) -> Judged:
    """Load a folder as any user of transformers would, and look at it."""
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    texts: list[str] = test["text"][:]
    view, _ = encode(tokenizer, texts, None, MAX_LENGTH)
    logits = predict_logits(
        model,
        sequence_classification,
        view,
        np.arange(len(texts)),
        batch_size=64,
        pad_token_id=tokenizer.pad_token_id,
        device=torch.device("cpu"),
    )
    sentences = [
        dict(tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"))
        for text in texts[:LATENCY_SENTENCES]
    ]
    return Judged(
        correct=logits.argmax(dim=-1).numpy() == np.array(test["label"]),
        parameters=count_parameters(model),
        megabytes=size_mb(model),
        latency_ms=latency_ms(model, sentences)[0],
    )


def gain(alone: Judged, distilled: Judged) -> str:
    """Say what the difference is, and whether it is more than chance on these questions."""
    paired = distilled.correct.astype(float) - alone.correct
    points = 100 * paired.mean()
    error = 100 * paired.std(ddof=1) / np.sqrt(len(paired))
    shown = "beyond" if abs(points) > 2 * error else "within"
    return (
        f"Distilled minus alone: {points:+.1f} points, {shown} what chance gives on "
        f"{len(paired)} questions (2 standard errors: {2 * error:.1f}); one seed."
    )
