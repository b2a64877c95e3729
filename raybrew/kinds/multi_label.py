"""Any number of classes for each text: each is there or not by itself."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from raybrew.config import Task
from raybrew.data.classes import class_index, class_names, class_numbers
from raybrew.data.columns import Rows, read_lists, read_rows
from raybrew.data.split import UNLABELLED, EncodedSplit
from raybrew.errors import DataError
from raybrew.kinds.kind import Kind
from raybrew.labels.payload import Payload

__all__ = ["MultiLabel"]


class MultiLabel(Kind):
    """A set of classes for each example."""

    name = "multi-label"
    model_class = AutoModelForSequenceClassification
    hard_loss = "binary_cross_entropy"
    kd_loss = "bce"
    exclusive = False
    problem_type = "multi_label_classification"

    def read(
        self, task: Task, train: Dataset, evaluation: Dataset | None
    ) -> tuple[tuple[str, ...], Rows, Rows | None]:
        """Read texts and lists of classes; see `Kind.read`."""
        what = f"tasks[{task.name}]"
        column = read_lists(train, task.label, f"{what}.train", "classes")
        feature = getattr(train.features[task.label], "feature", None)
        listed = [() if each is None or _is_mask(each) else each for each in column]
        if task.label_names is None and not any(listed) and any(map(_is_mask, column)):
            names = tuple(map(str, range(max(len(each or ()) for each in column))))
        else:
            names = class_names(task, listed, feature, what)
        rows = _rows(task, train, column, names, f"{what}.train")
        if evaluation is None:
            return names, rows, None
        other = read_lists(evaluation, task.label, f"{what}.eval", "classes")
        return names, rows, _rows(task, evaluation, other, names, f"{what}.eval")

    def num_labelled(self, rows: Rows) -> int:
        """Count rows whose classes are known."""
        return self.counts(rows.labels)[1]

    def counts(self, labels: np.ndarray) -> tuple[int, int]:
        """Count rows, and rows whose classes are known."""
        return len(labels), int((labels >= 0).any(axis=1).sum())

    def metrics(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> dict[str, float]:
        """Return micro and macro F1 and the share of exact sets; a class counts from ½ on."""
        from torchmetrics.functional.classification import (
            multilabel_exact_match,
            multilabel_f1_score,
        )

        labels = split.labels[rows]
        kept = (labels >= 0).any(axis=1)
        figures = {"examples": float(kept.sum())}
        if not kept.any():
            return figures
        found = torch.from_numpy(predicted.values[kept] > 0).long()
        true, classes = torch.from_numpy(labels[kept]), labels.shape[1]
        return figures | {
            "f1_micro": float(multilabel_f1_score(found, true, classes, average="micro")),
            "f1_macro": float(multilabel_f1_score(found, true, classes, average="macro")),
            "exact_match": float(multilabel_exact_match(found, true, classes)),
        }

    def main_metric(self, names: Sequence[str]) -> str:
        """Rank by micro F1."""
        return "f1_micro"


def _rows(
    task: Task,
    dataset: Dataset,
    column: list[list[Any] | None],
    names: Sequence[str],
    what: str,
) -> Rows:
    index = class_index(names)
    labels = [_classes(task, row, value, names, index, what) for row, value in enumerate(column)]
    return read_rows(task, dataset, what, np.stack(labels))


def _classes(
    task: Task,
    row: int,
    value: list[Any] | None,
    names: Sequence[str],
    index: Mapping[str | bool, int],
    what: str,
) -> np.ndarray:
    """Return 0 or 1 for each class, int64 (C,), or -1 for all of them."""
    if value is None:
        return np.full(len(names), UNLABELLED, np.int64)
    there = np.zeros(len(names), np.int64)
    if _is_mask(value):
        if len(value) != len(names):
            raise DataError(
                f"{what}: row {row}: expected true or false for each of the {len(names)} classes "
                f"in {task.label!r}, got {len(value)} of them"
            )
        return np.array(value, np.int64)
    numbers = class_numbers(value, names, what, task.label, row, index=index)
    if (numbers < 0).any():
        raise DataError(
            f"{what}: row {row}: expected classes in {task.label!r}, got {value!r}; a row without "
            "label is null, one of no class an empty list"
        )
    if len(set(numbers.tolist())) < len(numbers):
        raise DataError(
            f"{what}: row {row}: expected each class once in {task.label!r}, got {value!r}; a "
            "value for each of the classes is written as true or false, not as 1 or 0"
        )
    there[numbers] = 1
    return there


def _is_mask(value: Any) -> bool:
    """Whether a list says true or false of each class, rather than naming some."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, bool) for v in value)
