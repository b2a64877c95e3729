"""One number, or several, for each text or pair of texts."""

import math
from collections.abc import Sequence
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
from raybrew.tasks.task_type import TaskType

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

    def read(
        self, task: Task, train: Dataset, evaluation: Dataset | None
    ) -> tuple[tuple[str, ...], Rows, Rows | None]:
        """Read texts and numbers; see `TaskType.read`."""
        what = f"tasks[{task.name}]"
        column = read_column(train, task.label, f"{what}.train")
        lists = [value for value in column if isinstance(value, list)]
        width = max(1, len(lists[0])) if lists else 1
        names = tuple(task.label_names or [f"{task.label}_{n}" for n in range(width)])
        if len(names) == 1 or not lists:
            names = (task.label,)
        rows = read_rows(task, train, f"{what}.train", _numbers(task, column, names, "train"))
        if evaluation is None:
            return names, rows, None
        other = _numbers(task, read_column(evaluation, task.label, f"{what}.eval"), names, "eval")
        return names, rows, read_rows(task, evaluation, f"{what}.eval", other)

    def num_labelled(self, rows: Rows) -> int:
        """Count rows with a number."""
        return self.counts(rows.labels)[1]

    def counts(self, labels: np.ndarray) -> tuple[int, int]:
        """Count rows, and rows with a number."""
        return len(labels), int((~np.isnan(labels)).any(axis=1).sum())

    def metrics(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> dict[str, float]:
        """Return Pearson's and Spearman's correlation and the mean squared error."""
        return regression_metrics(
            torch.from_numpy(predicted.values), torch.from_numpy(split.labels[rows])
        )

    def main_metric(self, names: Sequence[str]) -> str:
        """Rank by Pearson's correlation."""
        return "pearson"


def regression_metrics(predicted: Tensor, true: Tensor) -> dict[str, float]:
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

    kept = ~true.isnan().any(dim=1)
    figures = {"examples": float(kept.sum())}
    if not kept.any():
        return figures
    found, known = predicted[kept].double(), true[kept].double()
    figures["mse"] = float(mean_squared_error(found, known))
    pairs = list(zip(found.T, known.T, strict=True))
    if any(len(side.unique()) < 2 for pair in pairs for side in pair):
        return figures | {"pearson": math.nan, "spearman": math.nan}
    for name, correlation in (("pearson", pearson_corrcoef), ("spearman", spearman_corrcoef)):
        each = [float(correlation(_scaled(one), _scaled(other))) for one, other in pairs]
        figures[name] = sum(each) / len(each)
    return figures


def _scaled(values: Tensor) -> Tensor:
    """Bring values to variance 1: torchmetrics takes what varies little for a constant."""
    return (values - values.mean()) / values.std()


def _numbers(task: Task, column: Sequence[Any], names: Sequence[str], side: str) -> np.ndarray:
    numbers = np.full((len(column), len(names)), np.nan, np.float32)
    for row, value in enumerate(column):
        values = value if isinstance(value, list) else [value]
        wrong = not all(v is None or _is_number(v) for v in values)
        if wrong or (value is not None and len(values) != len(names)):
            expected = "a finite number" if len(names) == 1 else f"{len(names)} finite numbers"
            expected += f" up to ±{_LARGEST:.1e}" if wrong else ""
            raise DataError(
                f"tasks[{task.name}].{side}: row {row}: expected {expected} in {task.label!r}, "
                f"got {value!r}"
            )
        numbers[row] = [math.nan if v is None else v for v in values]
    return numbers


def _is_number(value: Any) -> bool:
    # NaN is a missing label, as pandas and Arrow write it.
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (value != value or abs(value) <= _LARGEST)
    )
