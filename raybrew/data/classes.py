"""Classes of labels: their names, and the number of each label among them.

label of a row     text            name of a class
                   ClassLabel      number of a name of its own split
                   other number    the class of that value, where all names are numbers (-1, 1);
                                   else the place of the class among the names
                   true, false     the class of that name, else the second and the first of two
                   null, NaN, -100 no label; -1 as well, unless a class has that name
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from raybrew.config import Task
from raybrew.data.columns import read_column
from raybrew.data.split import UNLABELLED
from raybrew.errors import DataError

MAX_NUMBERED = 1 << 20
"""Most classes that a largest number may stand for; an identifier is no class."""

_MISSING = (-100, -1)
"""Numbers that stand for no label: PyTorch's ignored index, and that of datasets' ClassLabel."""
_BOOLS = ("False", "True")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


@dataclass(frozen=True)
class LabelReader:
    """Turns the labels of one split into class numbers.

    Args:
        names: of the classes.
        by_name: class of each text and bool.
        by_number: class of each number.
        unknown: names of the split's ClassLabel that are no class of the task, by number.
        problem: why numbers can't be read, where none can; empty otherwise.
        what: the job's field of the split, for messages.
        label: name of the column.
    """

    names: tuple[str, ...]
    by_name: Mapping[str | bool, int]
    by_number: Mapping[float, int]
    unknown: Mapping[float, str]
    problem: str
    what: str
    label: str

    def numbers(self, column: Sequence[Any], row: int | None = None) -> np.ndarray:
        """Return labels as class numbers, int64 (N,), -1 where there is none.

        Args:
            column: the labels.
            row: whose labels they all are; None where each is that of its own row.

        Raises:
            DataError: a label is none of the classes; names its row.
        """
        numbers = np.empty(len(column), np.int64)
        for at, value in enumerate(column):
            number = self._number(value)
            if number is None:
                raise DataError(self._message(value, at if row is None else row))
            numbers[at] = number
        return numbers

    def _number(self, value: Any) -> int | None:
        if value is None or value != value:
            return UNLABELLED
        if isinstance(value, str | bool):
            return self.by_name.get(value)
        if not isinstance(value, int | float):
            return None
        return self.by_number.get(value, UNLABELLED if value in _MISSING else None)

    def _message(self, value: Any, row: int) -> str:
        got = repr(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            got += self.problem
            if value in self.unknown:
                got = f"{self.unknown[value]!r} ({value} in the names of its ClassLabel)"
        return (
            f"{self.what}: row {row}: expected a label of the {len(self.names)} classes "
            f"{_shown(self.names)} in {self.label!r}, got {got}"
        )


@dataclass(frozen=True)
class Classes:
    """The classes of a task.

    Args:
        task: whose.
        names: in the order of the logits.
        feature: the training split's feature of a single label.
        by_number: class of each number that no ClassLabel names.
    """

    task: Task
    names: tuple[str, ...]
    feature: Any
    by_number: Mapping[float, int]

    def reader(self, feature: Any, what: str) -> LabelReader:
        """Return what reads the labels of a split.

        Args:
            feature: the split's feature of a single label.
            what: the job's field of the split.

        Raises:
            DataError: `label_names` neither name nor rename the classes of the data.
        """
        by_name = _by_name(self.names)
        training = _names_of(self.feature) or ()
        of_training = self._of_training(training, by_name)
        for name, number in zip(training, of_training, strict=True):
            if number is not None:
                by_name.setdefault(name, number)
        by_number, unknown, problem = self.by_number, {}, ""
        if (own := _names_of(feature)) is not None:
            found = _matched(own, by_name)
            by_number = {float(n): c for n, c in enumerate(found) if c is not None}
            unknown = {float(n): own[n] for n, c in enumerate(found) if c is None}
        elif any(by_number.get(n) != c for n, c in enumerate(of_training)):
            by_number = {}
            problem = (
                ", which has no ClassLabel that names it, and by the training split's "
                f"({_shown(training)}) is another class; write names"
            )
        return LabelReader(self.names, by_name, by_number, unknown, problem, what, self.task.label)

    def _of_training(
        self, training: Sequence[str], by_name: Mapping[str | bool, int]
    ) -> Sequence[int | None]:
        """Return the class of each name of the training split's ClassLabel."""
        found = _matched(training, by_name)
        if any(number is not None for number in found):
            return found
        # None of them is a class: `label_names` are new names for them.
        if training and len(training) != len(self.names):
            raise DataError(
                f"tasks[{self.task.name}].label_names: expected the names of the data's ClassLabel "
                f"({_shown(training)}) in any order, or as many new ones in that order, got "
                f"{_shown(self.names)}"
            )
        return range(len(training))


def read_labels(
    task: Task, train: Dataset, evaluation: Dataset | None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
    """Read the task's label column of both splits as class numbers.

    Returns:
        The classes' names, and int64 (N,) for either split; -1 where there is no label.

    Raises:
        DataError: the column is missing, a label is outside of the classes or none at all, or
            there are fewer than two classes, or more than there is sense in.
    """
    what = f"tasks[{task.name}]"
    column = read_column(train, task.label, f"{what}.train")
    feature = train.features[task.label]
    classes = read_classes(task, ([value] for value in column), feature)
    labels = classes.reader(feature, f"{what}.train").numbers(column)
    if evaluation is None:
        return classes.names, labels, None
    other = read_column(evaluation, task.label, f"{what}.eval")
    reader = classes.reader(evaluation.features[task.label], f"{what}.eval")
    return classes.names, labels, reader.numbers(other)


def read_classes(task: Task, rows: Iterable[Iterable[Any]], feature: Any) -> Classes:
    """Work out the classes of a task: their names in the order of the logits.

    They are `task.label_names`; else those of a ClassLabel column; else the distinct texts,
    sorted (as numbers, where all are numbers); else true and false; else 0 … the largest number.

    Args:
        task: may name them.
        rows: single labels of each training row; passed over once.
        feature: the training split's feature of a single label.

    Raises:
        DataError: there are fewer than two classes, a label is neither a number nor a name, or it
            isn't clear whether a negative number is a class or a missing label.
    """
    what = f"tasks[{task.name}].train"
    values = _distinct(rows, what, task.label)
    own = _names_of(feature)
    if task.label_names is not None:
        names = tuple(task.label_names)
        # As the names of a ClassLabel may have new ones, so may the classes -1 and 1.
        renamed = own is None and len(names) == 2 and not are_numbers(names)
        by_number = {-1.0: 0, 1.0: 1} if renamed and values - {-100} == {-1, 1} else None
        return Classes(task, names, feature, by_number or _by_value(names))
    if own is not None:
        names = own
    elif any(isinstance(value, str) for value in values):
        names = _sorted_names(map(str, values))
    elif any(isinstance(value, bool) for value in values):
        names = _BOOLS
    else:
        names = _numbered({int(value) for value in values}, what, task)
    if len(names) < 2:
        raise DataError(
            f"{what}: expected two classes or more in {task.label!r}, got "
            f"{', '.join(names) or 'none'}; set tasks[{task.name}].label_names if there are others"
        )
    return Classes(task, names, feature, _by_value(names))


def order_is_assumed(task: Task, names: Sequence[str], feature: Any) -> bool:
    """Return whether the order of the classes is given nowhere, so that their names were sorted.

    Args:
        task: may give it.
        names: of the classes.
        feature: the training split's feature of its labels.
    """
    given = task.label_names is not None or are_numbers(names) or tuple(names) == _BOOLS
    return not given and _names_of(item_feature(feature) or feature) is None


def item_feature(feature: Any) -> Any:
    """Return the feature of the items of a column of lists."""
    return getattr(feature, "feature", None)


def are_numbers(names: Iterable[str]) -> bool:
    """Whether all names are numbers, each another one."""
    names = list(names)
    numbers = {float(name) for name in names if _NUMBER.fullmatch(name)}
    return len(numbers) == len(names)


def _distinct(rows: Iterable[Iterable[Any]], what: str, label: str) -> set[str | int | float]:
    """Return the different labels, those that stand for none left out."""
    found: set[str | int | float] = set()
    for row, values in enumerate(rows):
        for value in values:
            if value is None or value != value:
                continue
            whole = isinstance(value, str | int) or (
                isinstance(value, float) and value.is_integer()
            )
            if not whole:
                raise DataError(
                    f"{what}: row {row}: expected a class as a name or a whole number in "
                    f"{label!r}, got {value!r}, a {type(value).__name__}"
                )
            # A column is of one type: True isn't beside 1.
            found.add(value)
    return found


def _sorted_names(texts: Iterable[str]) -> tuple[str, ...]:
    names = sorted(texts)
    return tuple(sorted(names, key=float) if are_numbers(names) else names)


def _numbered(numbers: set[int], what: str, task: Task) -> tuple[str, ...]:
    """Return the names of classes that are numbers."""
    numbers = numbers - {-100}
    if numbers == {-1, 1}:
        return ("-1", "1")
    classes = {number for number in numbers if number >= 0}
    negative = sorted(numbers - classes)
    if negative and not (negative == [-1] and {0, 1, 2} <= classes):
        raise DataError(
            f"{what}: negative numbers in {task.label!r} ({_shown(list(map(str, negative)))}) may "
            f"be classes or missing labels; set tasks[{task.name}].label_names: with them where "
            "they are classes; else without them, and write missing labels as null"
        )
    largest = max(classes, default=UNLABELLED)
    if largest >= MAX_NUMBERED:
        raise DataError(
            f"{what}: expected class numbers from 0 in {task.label!r}, got {largest}, which would "
            f"be the last of more than {MAX_NUMBERED} classes; number the classes from 0, or set "
            f"tasks[{task.name}].label_names"
        )
    return tuple(map(str, range(largest + 1)))


def _names_of(feature: Any) -> tuple[str, ...] | None:
    return tuple(feature.names) if isinstance(feature, ClassLabel) and feature.names else None


def _by_name(names: Sequence[str]) -> dict[str | bool, int]:
    """Return the class of each name, and those of True and False.

    CSV files have `true` and `false` in upper or lower case, and are read as bools.
    """
    found: dict[str | bool, int] = {name: number for number, name in enumerate(names)}
    values = _by_value(names)
    for value in (True, False):
        called = [n for n, name in enumerate(names) if name.casefold() == str(value).casefold()]
        if len(called) == 1:
            found[value] = called[0]
        elif not called and len(names) == 2 and value in values:
            found[value] = values[value]
    return found


def _by_value(names: Sequence[str]) -> dict[float, int]:
    """Return the class of each number: by their names where these are numbers, else by place."""
    if are_numbers(names):
        return {float(name): number for number, name in enumerate(names)}
    return {float(number): number for number in range(len(names))}


def _matched(own: Sequence[str], by_name: Mapping[str | bool, int]) -> list[int | None]:
    """Return the class of each name of a ClassLabel, upper and lower case alike if it is clear."""
    folded: dict[str, list[int]] = {}
    for name, number in by_name.items():
        if isinstance(name, str):
            folded.setdefault(name.casefold(), []).append(number)
    found: list[int | None] = []
    for name in own:
        alike = folded.get(name.casefold(), [])
        found.append(by_name.get(name, alike[0] if len(set(alike)) == 1 else None))
    return found


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" … ({len(names)})" if len(names) > 8 else "")
