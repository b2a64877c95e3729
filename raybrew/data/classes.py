"""Classes of labels: their names, and the number of each label among them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from raybrew.config import Task
from raybrew.data.columns import read_column
from raybrew.data.split import UNLABELLED
from raybrew.errors import DataError

__all__ = ["class_index", "class_names", "class_numbers", "read_labels"]

MAX_NUMBERED = 1 << 20
"""Most classes that a largest number may stand for; an identifier is no class."""


def read_labels(
    task: Task, train: Dataset, evaluation: Dataset | None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
    """Read the task's label column of both splits as class numbers.

    The classes are those of `class_names`. A negative number or null means that the row has no
    label. Numbers with gaps may have become floats: 2.0 is class 2, NaN no label.

    Returns:
        The classes' names, and int64 (N,) for either split; -1 where there is no label.

    Raises:
        DataError: the column is missing, a label is outside of the classes or none at all, or
            there are fewer than two classes, or more than there is sense in.
    """
    what = f"tasks[{task.name}]"
    column = read_column(train, task.label, f"{what}.train")
    names = class_names(task, ([value] for value in column), train.features[task.label], what)
    train_labels = class_numbers(column, names, f"{what}.train", task.label)
    if evaluation is None:
        return names, train_labels, None
    other = read_column(evaluation, task.label, f"{what}.eval")
    return names, train_labels, class_numbers(other, names, f"{what}.eval", task.label)


def class_names(
    task: Task, rows: Iterable[Iterable[Any]], feature: Any, what: str
) -> tuple[str, ...]:
    """Work out the classes of a task.

    Args:
        task: may name them.
        rows: single labels of each training row; passed over once.
        feature: what the data set says of a single label.
        what: the job's task, for messages.

    Returns:
        `task.label_names`, else those of a ClassLabel column, else the distinct strings in order,
        else 0 … the largest label.

    Raises:
        DataError: there are fewer than two classes, or a label is neither a number nor a name.
    """
    if task.label_names is not None:
        return tuple(task.label_names)
    column = [
        _checked(value, what, row, task.label)
        for row, values in enumerate(rows)
        for value in values
    ]
    if isinstance(feature, ClassLabel) and feature.names:
        names = tuple(feature.names)
    elif any(isinstance(value, str) for value in column):
        names = tuple(sorted({value for value in column if isinstance(value, str)}))
    else:
        largest = max((value for value in column if isinstance(value, int)), default=UNLABELLED)
        if largest >= MAX_NUMBERED:
            raise DataError(
                f"{what}.train: expected class numbers from 0 in {task.label!r}, got {largest}, "
                f"which would be the last of more than {MAX_NUMBERED} classes; number the classes "
                f"from 0, or set {what}.label_names"
            )
        names = tuple(map(str, range(largest + 1)))
    if len(names) < 2:
        raise DataError(
            f"{what}.train: expected two classes or more in {task.label!r}, got "
            f"{', '.join(names) or 'none'}; set {what}.label_names if there are others"
        )
    return names


def class_index(names: Sequence[str]) -> dict[str | bool, int]:
    """Return the number of each name, and those of True and False where classes are called so.

    CSV files say `true` and `false` in any case, and are read as bools.
    """
    index: dict[str | bool, int] = {name: number for number, name in enumerate(names)}
    for value in (True, False):
        called = [n for n, name in enumerate(names) if name.casefold() == str(value).casefold()]
        if len(called) == 1:
            index[value] = called[0]
    return index


def class_numbers(
    column: Sequence[Any],
    names: Sequence[str],
    what: str,
    label: str,
    row: int | None = None,
    *,
    index: Mapping[str | bool, int] | None = None,
) -> np.ndarray:
    """Return a column of labels as class numbers, int64 (N,), -1 where there is none.

    Args:
        column: class numbers, names, or null; a negative number says that there is no label.
        names: the classes.
        what: the job's field of the split, for messages.
        label: name of the column.
        row: whose labels they all are; None where each is that of its own row.
        index: `class_index(names)`, where it is there already.

    Raises:
        DataError: a label is outside of the classes; names its row.
    """
    index = class_index(names) if index is None else index
    numbers = np.empty(len(column), np.int64)
    for at, value in enumerate(column):
        named = isinstance(value, str | bool)
        number = index.get(value) if named else _class_number(value)
        if number is None or number >= len(names):
            raise DataError(
                f"{what}: row {at if row is None else row}: expected a label of the {len(names)} "
                f"classes {_shown(names)} in {label!r}, got {value!r}"
            )
        numbers[at] = number
    return numbers


def _class_number(value: Any) -> int | None:
    """Return the number that a label is, -1 where there is none; None for what is no number."""
    if value is None or value != value:
        return UNLABELLED
    if isinstance(value, bool) or not (
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    ):
        return None
    return max(int(value), UNLABELLED)


def _checked(value: Any, what: str, row: int, label: str) -> str | int:
    """Return a label's name or number."""
    found = value if isinstance(value, str) else _class_number(value)
    if found is None:
        raise DataError(
            f"{what}.train: row {row}: expected a class as a name or a number from 0 in "
            f"{label!r}, got {value!r}, a {type(value).__name__}"
        )
    return found


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" … ({len(names)})" if len(names) > 8 else "")
