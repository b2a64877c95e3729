"""From a data set's columns to texts and class numbers, each row checked."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from raybrew.config import Task
from raybrew.errors import DataError

__all__ = ["Rows", "read_labels", "read_routes", "read_rows"]

NO_LABEL = -1


@dataclass(frozen=True)
class Rows:
    """The texts of a split.

    Args:
        texts: N texts.
        pairs: N second texts; None for single ones.
    """

    texts: list[str]
    pairs: list[str] | None


def read_rows(task: Task, dataset: Dataset, what: str) -> Rows:
    """Read the task's text columns.

    Args:
        task: names them.
        dataset: the split.
        what: the job's field of it, for messages.

    Raises:
        DataError: a column is missing, or a row of it holds no text.
    """
    texts = _texts(dataset, task.text, what)
    pairs = None if task.text_pair is None else _texts(dataset, task.text_pair, what)
    return Rows(texts, pairs)


def read_labels(
    task: Task, train: Dataset, evaluation: Dataset | None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
    """Read the task's label column of both splits as class numbers.

    The classes are `task.label_names`, else those of a ClassLabel column, else the distinct
    strings of the training rows in order, else 0 … the largest training label. A negative number
    or null means that the row has no label.

    Returns:
        The classes' names, and int64 (N,) for either split; -1 where there is no label.

    Raises:
        DataError: the column is missing, a label is outside of the classes or none at all, or
            there are fewer than two classes.
    """
    what = f"tasks[{task.name}]"
    column = _column(train, task.label, f"{what}.train")
    names = _classes(task, train, column, what)
    train_labels = _numbers(column, names, f"{what}.train", task.label)
    if evaluation is None:
        return names, train_labels, None
    other = _column(evaluation, task.label, f"{what}.eval")
    return names, train_labels, _numbers(other, names, f"{what}.eval", task.label)


def read_routes(
    task: Task, dataset: Dataset, teachers: Sequence[str], what: str
) -> np.ndarray | None:
    """Read the column that names each row's teacher.

    Args:
        task: names the column.
        dataset: the split.
        teachers: names of the task's teachers.
        what: the job's field of the split, for messages.

    Returns:
        int64 (N,), index among the teachers; None if the task names no column.

    Raises:
        DataError: the column is missing, or a row names no teacher of the task.
    """
    if task.teacher_column is None or not teachers:
        return None
    index = {name: number for number, name in enumerate(teachers)}
    values = _column(dataset, task.teacher_column, what)
    for row, value in enumerate(values):
        if value not in index:
            raise DataError(
                f"{what}: row {row}: expected a teacher of the task ({', '.join(teachers)}) in "
                f"{task.teacher_column!r}, got {value!r}"
            )
    return np.array([index[value] for value in values], np.int64)


def _column(dataset: Dataset, name: str, what: str) -> list[Any]:
    if name not in dataset.column_names:
        near = difflib.get_close_matches(name, dataset.column_names, 3, 0.4)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise DataError(
            f"{what}: expected a column {name!r}, got {', '.join(dataset.column_names)}{hint}"
        )
    return dataset[name][:]


def _texts(dataset: Dataset, name: str, what: str) -> list[str]:
    values = _column(dataset, name, what)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"{what}: row {row}: expected text in {name!r}, got {value!r}")
    return values


def _classes(task: Task, train: Dataset, column: Sequence[Any], what: str) -> tuple[str, ...]:
    if task.label_names is not None:
        return tuple(task.label_names)
    feature = train.features[task.label]
    if isinstance(feature, ClassLabel) and feature.names:
        names = tuple(feature.names)
    elif any(isinstance(value, str) for value in column):
        names = tuple(sorted({value for value in column if isinstance(value, str)}))
    else:
        numbers = [value for value in column if _is_class_number(value)]
        names = tuple(map(str, range(max(numbers, default=-1) + 1)))
    if len(names) < 2:
        raise DataError(
            f"{what}.train: expected two classes or more in {task.label!r}, got "
            f"{', '.join(names) or 'none'}; set {what}.label_names if there are others"
        )
    return names


def _numbers(column: Sequence[Any], names: Sequence[str], what: str, label: str) -> np.ndarray:
    index = {name: number for number, name in enumerate(names)}
    numbers = np.empty(len(column), np.int64)
    for row, value in enumerate(column):
        if value is None or (_is_class_number(value) and value < 0):
            numbers[row] = NO_LABEL
        elif _is_class_number(value) and value < len(names):
            numbers[row] = value
        elif isinstance(value, str) and value in index:
            numbers[row] = index[value]
        else:
            raise DataError(
                f"{what}: row {row}: expected a label of the {len(names)} classes "
                f"{_shown(names)} in {label!r}, got {value!r}"
            )
    return numbers


def _is_class_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" … ({len(names)})" if len(names) > 8 else "")
