"""One class for each text, or for each pair of texts."""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from raybrew.config import Task
from raybrew.data.classes import read_labels
from raybrew.data.columns import Rows, read_rows
from raybrew.data.payload import Payload
from raybrew.data.split import EncodedSplit
from raybrew.tasks.task_type import TaskType


class SequenceClassification(TaskType):
    """A class of its own for each example."""

    name = "sequence-classification"
    model_class = AutoModelForSequenceClassification
    problem_type = "single_label_classification"

    def read(
        self, task: Task, train: Dataset, evaluation: Dataset | None
    ) -> tuple[tuple[str, ...], Rows, Rows | None]:
        """Read texts and classes; see `TaskType.read`."""
        names, labels, eval_labels = read_labels(task, train, evaluation)
        what = f"tasks[{task.name}]"
        rows = read_rows(task, train, f"{what}.train", labels)
        if evaluation is None:
            return names, rows, None
        return names, rows, read_rows(task, evaluation, f"{what}.eval", eval_labels)

    def metrics(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> dict[str, float]:
        """Return accuracy, macro F1 and Matthews' correlation."""
        logits = torch.from_numpy(predicted.values)
        return classification_metrics(logits, torch.from_numpy(split.labels[rows]))

    def main_metric(self, names: Sequence[str]) -> str:
        """Rank by accuracy."""
        return "accuracy"


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
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

    kept = labels >= 0
    logits, labels = logits[kept], labels[kept]
    figures = {"examples": float(len(labels))}
    if not len(labels):
        return figures
    classes = logits.shape[-1]
    predicted = logits.argmax(dim=-1)
    return figures | {
        "accuracy": float(multiclass_accuracy(predicted, labels, classes, average="micro")),
        "f1_macro": float(multiclass_f1_score(predicted, labels, classes, average="macro")),
        "matthews": float(multiclass_matthews_corrcoef(predicted, labels, classes)),
    }
