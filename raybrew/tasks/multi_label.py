"""Any number of classes for each text: each is there or not by itself.

    classes of a row   ["a", "c"]   [0, 2]   names or numbers of those that are there
    flags of a row     [True, False, True]   [1, 0, 1]   [1.0, 0.0, 1.0]   one for each class

Flags are in the order of `label_names`; where these are the numbers 0, 1, … in another order, they
say which flag is that of each class.
Whether 0 and 1 are numbers or flags is decided once for the whole column, over both splits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from scipy.special import expit
from transformers import AutoModelForSequenceClassification

from raybrew.config import Task
from raybrew.data.classes import Classes, LabelReader, item_feature, read_classes
from raybrew.data.columns import Rows, read_lists, read_rows
from raybrew.data.payload import Payload
from raybrew.data.split import UNLABELLED, EncodedSplit
from raybrew.errors import DataError
from raybrew.tasks.task_type import (
    Breakdown,
    Metrics,
    Prediction,
    TaskType,
    f1_scores,
    scores_of,
)


class MultiLabel(TaskType):
    """A set of classes for each example."""

    name = "multi-label"
    model_class = AutoModelForSequenceClassification
    hard_loss = "binary_cross_entropy"
    kd_loss = "bce"
    exclusive = False
    problem_type = "multi_label_classification"
    ranking_metric = "f1_micro"

    def read_splits(
        self, task: Task, splits: Mapping[str, Dataset]
    ) -> tuple[tuple[str, ...], dict[str, Rows]]:
        """Read texts and lists of classes; see `TaskType.read`."""
        columns = {
            side: read_lists(split, task.label, f"tasks[{task.name}].{side}", "classes")
            for side, split in splits.items()
        }
        features = {side: item_feature(each.features[task.label]) for side, each in splits.items()}
        flags = _are_flags(task, [row for each in columns.values() for row in each], features)
        if flags and task.label_names is None:
            width = max(len(row or ()) for row in columns["train"])
            classes = Classes(task, tuple(map(str, range(width))), None, {})
        else:
            listed = () if flags else (row or () for row in columns["train"])
            classes = read_classes(task, listed, features["train"])
        places = _places(classes.names) if flags else None
        rows = {}
        for side, split in splits.items():
            reader = classes.reader(features[side], f"tasks[{task.name}].{side}")
            labels = [
                _classes(reader, row, value, places) for row, value in enumerate(columns[side])
            ]
            rows[side] = read_rows(task, split, reader.what, np.stack(labels))
        return classes.names, rows

    def counts(self, labels: np.ndarray) -> tuple[int, int]:
        """Count rows, and rows whose classes are known."""
        return len(labels), int((labels >= 0).any(axis=1).sum())

    def metrics(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> Metrics:
        """Return micro and macro F1 and the share of exact sets; a class counts from ½ on."""
        from torchmetrics.functional.classification import (
            multilabel_exact_match,
            multilabel_f1_score,
        )

        labels = split.labels[rows]
        labelled = (labels >= 0).any(axis=1)
        metrics = {"examples": float(labelled.sum())}
        if not labelled.any():
            return metrics
        found = torch.from_numpy(predicted.values[labelled] > 0).long()
        true, classes = torch.from_numpy(labels[labelled]), labels.shape[1]
        return metrics | {
            "f1_micro": float(multilabel_f1_score(found, true, classes, average="micro")),
            "f1_macro": float(multilabel_f1_score(found, true, classes, average="macro")),
            "exact_match": float(multilabel_exact_match(found, true, classes)),
        }

    def decode(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> list[Prediction]:
        """Return `labels` that are there, and their `probabilities`; see `TaskType.decode`."""
        probabilities = expit(predicted.values)
        found = []
        for row in probabilities:
            there = np.flatnonzero(row >= 0.5).tolist()
            found.append(
                {
                    "labels": [names[number] for number in there],
                    "probabilities": [float(row[number]) for number in there],
                }
            )
        return found

    def truth(
        self, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> list[Prediction | None]:
        """Return the `labels`; see `TaskType.truth`."""
        found: list[Prediction | None] = []
        for flags in split.labels[rows]:
            there = [names[number] for number in np.flatnonzero(flags > 0).tolist()]
            found.append(None if (flags < 0).all() else {"labels": there})
        return found

    def row_scores(
        self, found: Sequence[Prediction], true: Sequence[Prediction | None], split: EncodedSplit
    ) -> np.ndarray:
        """Return the share of classes that both have among those that either has."""
        return scores_of(found, true, _jaccard)

    def breakdown(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> Breakdown | None:
        """Return F1 by class; see `TaskType.breakdown`."""
        labels = split.labels[rows]
        known = (labels >= 0).any(axis=1)
        if not known.any():
            return None
        true, found = labels[known] > 0, predicted.values[known] > 0
        counts = true.sum(axis=0)
        scores = f1_scores((true & found).sum(axis=0), found.sum(axis=0), counts)
        return Breakdown("class", "F1", list(names), counts.tolist(), scores)

    def constant_score(self, split: EncodedSplit, names: Sequence[str]) -> float:
        """Return the micro F1 of the most frequent classes, as many as are best for it."""
        known = split.labels[(split.labels >= 0).any(axis=1)] > 0
        counts = np.sort(known.sum(axis=0))[::-1]
        # 2 right / (answered + true), of the first 1, 2, … classes.
        answered = len(known) * np.arange(1, len(counts) + 1)
        return float((2 * counts.cumsum() / np.maximum(answered + counts.sum(), 1)).max(initial=0))

    def unlabelled_rows(self, task: Task, dataset: Dataset, what: str, num_labels: int) -> Rows:
        """Read texts alone; see `TaskType.unlabelled_rows`."""
        return read_rows(task, dataset, what, np.full((len(dataset), num_labels), UNLABELLED))


def _jaccard(one: Prediction, other: Prediction) -> float:
    left, right = set(one["labels"]), set(other["labels"])
    return len(left & right) / len(left | right) if left | right else 1.0


def _are_flags(task: Task, rows: Sequence[list[Any] | None], features: Mapping[str, Any]) -> bool:
    """Return whether lists have a value for each class, 0 or 1, rather than name some.

    Raises:
        DataError: they could be either.
    """
    known = [row for row in rows if row is not None]
    if any(isinstance(value, bool) for row in known for value in row):
        return True
    numbers = all(value in (0, 1) for row in known for value in row)
    widths = {len(row) for row in known}
    width = next(iter(widths), 0)
    named = any(isinstance(feature, ClassLabel) for feature in features.values())
    expected = (width,) if task.label_names is None else (len(task.label_names),)
    if named or not numbers or widths != {*expected} or width < 2:
        return False
    # A set has no class twice, and that all rows have both of two classes is no classification.
    if any(row != [0, 1] for row in known):
        return True
    raise DataError(
        f"tasks[{task.name}]: {task.label!r} holds [0, 1] in every row, which may be both of two "
        "classes or the second alone; write the names of the classes that are there, or true and "
        "false for each class"
    )


def _places(names: Sequence[str]) -> np.ndarray:
    """Return the place of each class in a row of flags, int64 (C,): its name, if that is one."""
    order = list(map(str, range(len(names))))
    return np.array(names if sorted(names) == sorted(order) else order).astype(np.int64)


def _classes(
    reader: LabelReader, row: int, value: list[Any] | None, places: np.ndarray | None
) -> np.ndarray:
    """Return 0 or 1 for each class, int64 (C,), or -1 for all of them.

    Args:
        reader: of the split.
        row: whose value it is.
        value: classes that are there, or flags.
        places: of the classes among flags; None where values are classes.
    """
    where, size = f"{reader.what}: row {row}", len(reader.names)
    if value is None:
        return np.full(size, UNLABELLED, np.int64)
    if places is not None and value:
        if len(value) != size:
            raise DataError(
                f"{where}: expected true or false for each of the {size} classes in "
                f"{reader.label!r}, got {len(value)} of them"
            )
        return np.array(value, np.int64)[places]
    numbers = reader.numbers(value, row)
    if (numbers < 0).any():
        raise DataError(
            f"{where}: expected classes in {reader.label!r}, got {value!r}; a row without label "
            "is null, one of no class an empty list"
        )
    if len(set(numbers.tolist())) < len(numbers):
        raise DataError(
            f"{where}: expected each class once in {reader.label!r}, got {value!r}; a value for "
            "each of the classes is written as true or false (or as 1 or 0, where each row of both "
            f"splits has {size} of them)"
        )
    there = np.zeros(size, np.int64)
    there[numbers] = 1
    return there
