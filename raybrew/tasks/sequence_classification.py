"""One class for each text, or for each pair of texts."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from datasets import Dataset
from scipy.special import softmax
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from raybrew.config import Task
from raybrew.data.classes import read_labels
from raybrew.data.columns import Rows, read_rows
from raybrew.data.payload import Payload
from raybrew.data.split import EncodedSplit
from raybrew.tasks.task_type import (
    Breakdown,
    Metrics,
    Prediction,
    TaskType,
    f1_scores,
    scores_of,
)


class SequenceClassification(TaskType):
    """A class of its own for each example."""

    name = "sequence-classification"
    model_class = AutoModelForSequenceClassification
    problem_type = "single_label_classification"
    ranking_metric = "accuracy"

    def read_splits(
        self, task: Task, splits: Mapping[str, Dataset]
    ) -> tuple[tuple[str, ...], dict[str, Rows]]:
        """Read texts and classes; see `TaskType.read`."""
        names, *labels = read_labels(task, splits["train"], splits.get("eval"))
        rows = {
            side: read_rows(task, split, f"tasks[{task.name}].{side}", numbers)
            for (side, split), numbers in zip(splits.items(), labels, strict=False)
        }
        return names, rows

    def metrics(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> Metrics:
        """Return accuracy, macro F1 and Matthews' correlation."""
        logits = torch.from_numpy(predicted.values)
        return classification_metrics(logits, torch.from_numpy(split.labels[rows]))

    def decode(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> list[Prediction]:
        """Return `label` and its `probability`; see `TaskType.decode`."""
        probabilities = softmax(predicted.values, axis=1)
        best = probabilities.argmax(axis=1)
        return [
            {"label": names[number], "probability": float(row[number])}
            for number, row in zip(best.tolist(), probabilities, strict=True)
        ]

    def truth(
        self, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> list[Prediction | None]:
        """Return the `label`; see `TaskType.truth`."""
        return [None if n < 0 else {"label": names[n]} for n in split.labels[rows].tolist()]

    def row_scores(
        self, found: Sequence[Prediction], true: Sequence[Prediction | None], split: EncodedSplit
    ) -> np.ndarray:
        """Return 1 for the right class, 0 for another; see `TaskType.row_scores`."""
        return scores_of(found, true, lambda one, other: float(one["label"] == other["label"]))

    def breakdown(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> Breakdown | None:
        """Return F1 by class, and which class is taken for which; see `TaskType.breakdown`."""
        labels, best = split.labels[rows], predicted.values.argmax(axis=1)
        known = labels >= 0
        if not known.any():
            return None
        classes = len(names)
        pairs = np.bincount(labels[known] * classes + best[known], minlength=classes**2)
        confusion = pairs.reshape(classes, classes)
        counts = confusion.sum(axis=1)
        scores = f1_scores(confusion.diagonal(), confusion.sum(axis=0), counts)
        return Breakdown("class", "F1", list(names), counts.tolist(), scores, confusion)

    def constant_score(self, split: EncodedSplit, names: Sequence[str]) -> float:
        """Return the share of the largest class; see `TaskType.constant_score`."""
        return largest_share(split.labels)


def largest_share(labels: np.ndarray) -> float:
    """Return the share of the most frequent class, of labels that are known; 0 without any."""
    known = labels[labels >= 0]
    return float(np.bincount(known).max() / len(known)) if len(known) else 0.0


def classification_metrics(logits: Tensor, labels: Tensor) -> Metrics:
    """Return accuracy, macro F1 and Matthews' correlation, as torchmetrics has them.

    Args:
        logits: (N, C), any scale: only their order counts.
        labels: int64 (N,); rows with a negative label are left out.

    Returns:
        `accuracy`, `f1_macro`, `matthews`, and `examples` that were counted; no metric where
        there is no label.
    """
    # Takes over a second to import, which a process that only trains need not spend.
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_f1_score,
        multiclass_matthews_corrcoef,
    )

    labelled = labels >= 0
    logits, labels = logits[labelled], labels[labelled]
    metrics = {"examples": float(len(labels))}
    if not len(labels):
        return metrics
    classes = logits.shape[-1]
    predicted = logits.argmax(dim=-1)
    return metrics | {
        "accuracy": float(multiclass_accuracy(predicted, labels, classes, average="micro")),
        "f1_macro": float(multiclass_f1_score(predicted, labels, classes, average="macro")),
        "matthews": float(multiclass_matthews_corrcoef(predicted, labels, classes)),
    }
