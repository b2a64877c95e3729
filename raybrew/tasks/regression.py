"""One number, or several, for each text or pair of texts."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from raybrew.config import Task
from raybrew.data.columns import Rows, read_column, read_rows
from raybrew.data.payload import Payload
from raybrew.data.split import EncodedSplit
from raybrew.errors import DataError
from raybrew.tasks.task_type import Breakdown, Metrics, Prediction, TaskType, scores_of

_BINS = 5
_ERROR = "absolute error"
_LARGEST = float(np.finfo(np.float32).max)


class Regression(TaskType):
    """Numbers for each example. Its outputs are no logits: no temperature divides them."""

    name = "regression"
    model_class = AutoModelForSequenceClassification
    hard_loss = "mse"
    kd_loss = "mse"
    exclusive = False
    softened = False
    has_names = False
    problem_type = "regression"
    ranking_metric = "pearson"

    def read_splits(
        self, task: Task, splits: Mapping[str, Dataset]
    ) -> tuple[tuple[str, ...], dict[str, Rows]]:
        """Read texts and numbers; see `TaskType.read`."""
        names, rows = (), {}
        for side, split in splits.items():
            what = f"tasks[{task.name}].{side}"
            column = read_column(split, task.label, what)
            names = names or _output_names(task, column)
            rows[side] = read_rows(task, split, what, _numbers(task.label, column, names, what))
        return names, rows

    def counts(self, labels: np.ndarray) -> tuple[int, int]:
        """Count rows, and rows with a number."""
        return len(labels), int((~np.isnan(labels)).any(axis=1).sum())

    def metrics(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> Metrics:
        """Return Pearson's and Spearman's correlation and the mean squared error."""
        return regression_metrics(
            torch.from_numpy(predicted.values), torch.from_numpy(split.labels[rows])
        )

    def decode(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> list[Prediction]:
        """Return the `value`; see `TaskType.decode`."""
        single = predicted.values.shape[1] == 1
        return [{"value": row[0] if single else row} for row in predicted.values.tolist()]

    def truth(
        self, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> list[Prediction | None]:
        """Return the `value`; see `TaskType.truth`."""
        single = split.labels.shape[1] == 1
        return [
            None if np.isnan(row).any() else {"value": float(row[0]) if single else row.tolist()}
            for row in split.labels[rows]
        ]

    def row_scores(
        self, found: Sequence[Prediction], true: Sequence[Prediction | None], split: EncodedSplit
    ) -> np.ndarray:
        """Return the absolute error, negative, a mean over outputs; see `TaskType.row_scores`."""

        def score(one: Prediction, other: Prediction) -> float:
            return -float(np.abs(np.subtract(one["value"], other["value"])).mean())

        return scores_of(found, true, score)

    def breakdown(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> Breakdown | None:
        """Return the absolute error by bins of the true value, or by output."""
        known = ~np.isnan(split.labels[rows]).any(axis=1)
        if not known.any():
            return None
        true = split.labels[rows][known].astype(float)
        error = np.abs(predicted.values[known] - true)
        if true.shape[1] > 1:
            counts = [len(true)] * len(names)
            return Breakdown("output", _ERROR, list(names), counts, error.mean(axis=0).tolist())
        edges = np.linspace(true.min(), true.max(), _BINS + 1)
        place = np.clip(np.searchsorted(edges, true[:, 0], side="right") - 1, 0, _BINS - 1)
        counts = np.bincount(place, minlength=_BINS)
        sums = np.bincount(place, error[:, 0], minlength=_BINS)
        scores = np.where(counts > 0, sums / np.maximum(counts, 1), math.nan).tolist()
        bins = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
        return Breakdown("true value", _ERROR, bins, counts.tolist(), scores)

    def unlabelled_rows(self, task: Task, dataset: Dataset, what: str, num_labels: int) -> Rows:
        """Read texts alone; see `TaskType.unlabelled_rows`."""
        numbers = np.full((len(dataset), num_labels), np.nan, np.float32)
        return read_rows(task, dataset, what, numbers)


def regression_metrics(predicted: Tensor, true: Tensor) -> Metrics:
    """Return correlations and the squared error, as torchmetrics has them; means over outputs.

    Args:
        predicted: (N, D).
        true: (N, D), NaN where there is none; such rows are left out.

    Returns:
        `pearson`, `spearman` (NaN where one side is constant), `mse`, and `examples`.
    """
    from torchmetrics.functional import (
        mean_squared_error,
        pearson_corrcoef,
        spearman_corrcoef,
    )

    labelled = ~true.isnan().any(dim=1)
    metrics = {"examples": float(labelled.sum())}
    if not labelled.any():
        return metrics
    predicted, true = predicted[labelled].double(), true[labelled].double()
    metrics["mse"] = float(mean_squared_error(predicted, true))
    pairs = list(zip(predicted.T, true.T, strict=True))
    if any(len(side.unique()) < 2 for pair in pairs for side in pair):
        return metrics | {"pearson": math.nan, "spearman": math.nan}
    for name, correlation in (("pearson", pearson_corrcoef), ("spearman", spearman_corrcoef)):
        each = [float(correlation(_scaled(one), _scaled(other))) for one, other in pairs]
        metrics[name] = sum(each) / len(each)
    return metrics


def _scaled(values: Tensor) -> Tensor:
    """Bring values to variance 1: torchmetrics takes what varies little for a constant."""
    return (values - values.mean()) / values.std()


def _output_names(task: Task, column: Sequence[Any]) -> tuple[str, ...]:
    """Return a name for each number of a row: the column's for a single one."""
    first = next((value for value in column if isinstance(value, list)), None)
    width = max(1, len(first or ()))
    names = tuple(task.label_names or [f"{task.label}_{n}" for n in range(width)])
    return names if first is not None and len(names) > 1 else (task.label,)


def _numbers(label: str, column: Sequence[Any], names: Sequence[str], what: str) -> np.ndarray:
    """Return the numbers of each row, float32 (N, D), NaN where there is none."""
    numbers = np.full((len(column), len(names)), np.nan, np.float32)
    for row, value in enumerate(column):
        values = value if isinstance(value, list) else [value]
        wrong = not all(v is None or _is_number(v) for v in values)
        if wrong or (value is not None and len(values) != len(names)):
            expected = "a finite number" if len(names) == 1 else f"{len(names)} finite numbers"
            expected += f" up to ±{_LARGEST:.1e}" if wrong else ""
            raise DataError(f"{what}: row {row}: expected {expected} in {label!r}, got {value!r}")
        numbers[row] = [math.nan if v is None else v for v in values]
    return numbers


def _is_number(value: Any) -> bool:
    # NaN is a missing label, as pandas and Arrow write it.
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (value != value or abs(value) <= _LARGEST)
    )
