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
from raybrew.tasks.task_type import Metrics, Prediction, TaskType


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
