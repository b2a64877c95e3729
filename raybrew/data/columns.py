"""A data set's columns: there or not, texts or not, each row checked."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset

from raybrew.config import Task
from raybrew.data.supplied import SuppliedLogits
from raybrew.errors import DataError

__all__ = [
    "Rows",
    "read_column",
    "read_lists",
    "read_routes",
    "read_rows",
    "read_texts",
    "read_words",
]


@dataclass(frozen=True)
class Rows:
    """The rows of a split as a kind of task reads them.

    Args:
        texts: of each row: a text, or the list of its words.
        pairs: second texts; None for single ones.
        labels: what is to be learnt of each row, in the form of the kind of task.
        supplied: by teacher, logits that the data has already.
        what: the job's field of the split, for messages of what encodes it.
    """

    texts: Sequence[Any]
    pairs: Sequence[str] | None = None
    labels: Any = None
    supplied: Mapping[str, SuppliedLogits] = field(default_factory=dict)
    what: str = ""

    def __len__(self) -> int:
        return len(self.texts)


def read_rows(task: Task, dataset: Dataset, what: str, labels: Any = None) -> Rows:
    """Read the task's text columns.

    Args:
        task: names them.
        dataset: the split.
        what: the job's field of it, for messages.
        labels: of its rows.

    Raises:
        DataError: a column is missing, or a row of it holds no text.
    """
    texts = read_texts(dataset, task.text, what)
    pairs = None if task.text_pair is None else read_texts(dataset, task.text_pair, what)
    return Rows(texts, pairs, labels)


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
    values = read_column(dataset, task.teacher_column, what)
    for row, value in enumerate(values):
        if not isinstance(value, str) or value not in index:
            raise DataError(
                f"{what}: row {row}: expected a teacher of the task ({', '.join(teachers)}) in "
                f"{task.teacher_column!r}, got {value!r}"
            )
    return np.array([index[value] for value in values], np.int64)


def read_column(dataset: Dataset, name: str, what: str) -> list[Any]:
    """Return a column's values.

    Raises:
        DataError: it is missing, and names the nearest ones, or its texts aren't UTF-8.
    """
    if name not in dataset.column_names:
        near = difflib.get_close_matches(name, dataset.column_names, 3, 0.4)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise DataError(
            f"{what}: expected a column {name!r}, got {', '.join(dataset.column_names)}{hint}"
        )
    try:
        return dataset[name][:]
    except UnicodeDecodeError as error:
        raise DataError(f"{what}: expected text in UTF-8 in {name!r}, got: {error}") from error


def read_lists(dataset: Dataset, name: str, what: str, noun: str) -> list[list[Any] | None]:
    """Return a column of lists, where null stands for an unknown one.

    Raises:
        DataError: it is missing, or a row holds something else; `noun` says of what the lists are.
    """
    values = read_column(dataset, name, what)
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, list):
            raise DataError(
                f"{what}: row {row}: expected a list of {noun} in {name!r}, got {value!r}"
            )
    return values


def read_texts(dataset: Dataset, name: str, what: str) -> list[str]:
    """Return a column of texts.

    Raises:
        DataError: it is missing, or a row holds no text.
    """
    values = read_column(dataset, name, what)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"{what}: row {row}: expected text in {name!r}, got {value!r}")
    return values


def read_words(dataset: Dataset, name: str, what: str) -> list[list[str]]:
    """Return a column of lists of words.

    Raises:
        DataError: it is missing, or a row holds no list of texts.
    """
    values = read_column(dataset, name, what)
    for row, value in enumerate(values):
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise DataError(
                f"{what}: row {row}: expected a list of words in {name!r}, got {value!r}"
            )
    return values
