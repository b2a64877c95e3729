"""The rows of a task: read from the columns of its data, checked, encoded by each tokenizer."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from raybrew.config import Task, Teacher
from raybrew.data.agreement import order_problem
from raybrew.data.augmentation import augmented
from raybrew.data.classes import order_is_assumed
from raybrew.data.columns import Rows, read_column, read_routes, read_supplied
from raybrew.data.sources import held_out, load_source, with_transfer
from raybrew.errors import DataError
from raybrew.tasks import task_type_of
from raybrew.tasks.task_type import TaskType

logger = logging.getLogger(__name__)

_COMPARED = 4096
"""Rows whose logits are compared with labels at most."""


@dataclass(frozen=True)
class TaskData:
    """The rows of a task.

    Args:
        task: the job's section.
        label_names: classes, in the order of the logits.
        train: rows to learn from.
        eval: rows to evaluate on.
        train_routes: int64 (N,), index of each row's teacher; None without a column for it.
        eval_routes: the same of the evaluation rows.
        order_assumed: whether nothing says the order of the classes: their names were sorted.
    """

    task: Task
    label_names: tuple[str, ...]
    train: Rows
    eval: Rows | None
    train_routes: np.ndarray | None = None
    eval_routes: np.ndarray | None = None
    order_assumed: bool = False

    @property
    def kind(self) -> TaskType:
        """Of the task."""
        return task_type_of(self.task.kind)

    def encode(
        self, tokenizers: Mapping[str, PreTrainedTokenizerBase], folder: Path
    ) -> dict[str, str]:
        """Encode the splits and save them.

        Args:
            tokenizers: by name of the view.
            folder: the splits are saved in a folder of it that is named after the task.

        Returns:
            Their folders, by `train` and `eval`.
        """
        sides = [("train", self.train, self.train_routes)]
        if self.eval is not None:
            sides.append(("eval", self.eval, self.eval_routes))
        folders = {}
        for side, rows, routes in sides:
            split = self.kind.encode(self.task, rows, tokenizers)
            if routes is not None:
                # A row may have become several examples.
                examples = routes if split.source is None else routes[split.source]
                split = replace(split, routes=examples)
            place = folder / self.task.name / side
            split.save(place)
            folders[side] = str(place)
        return folders


def read_task_data(task: Task, teachers: Sequence[Teacher] = ()) -> TaskData:
    """Read and check the rows of a task.

    Args:
        task: the job's section.
        teachers: of the task, for the column that names one a row, and for those that are
            columns themselves.
    """
    what = f"tasks[{task.name}]"
    columns = {teacher.name: teacher.logits for teacher in teachers if teacher.logits is not None}
    named, train, evaluation = load_splits(task, what)
    train = with_transfer(train, task, list(columns.values()), what)
    if task.augmentation is not None:
        texts = [name for name in (task.text, task.text_pair) if name is not None]
        train = augmented(
            train, task.augmentation, texts=texts, label=task.label, what=f"{what}.train"
        )
    kind = task_type_of(task.kind)
    names, rows, eval_rows = kind.read(named, train, evaluation)
    data = TaskData(
        task=task,
        label_names=names,
        train=_with_supplied(kind, names, train, rows, columns, f"{what}.train"),
        eval=eval_rows,
        train_routes=read_routes(task, train, [t.name for t in teachers], f"{what}.train"),
        order_assumed=kind.names_classes
        and order_is_assumed(task, names, train.features[task.label]),
    )
    if evaluation is not None and eval_rows is not None:
        data = replace(
            data,
            eval=_with_supplied(kind, names, evaluation, eval_rows, columns, f"{what}.eval"),
            eval_routes=read_routes(task, evaluation, [t.name for t in teachers], f"{what}.eval"),
        )
    if kind.names_classes:
        for number, teacher in enumerate(teachers):
            _check_column_order(data, teacher, number)
    return data


def load_splits(task: Task, what: str) -> tuple[Task, Dataset, Dataset | None]:
    """Return training and evaluation rows, and the task with the classes that either has."""
    train = load_source(task.train, f"{what}.train")
    if task.eval_fraction is None:
        return task, train, None if task.eval is None else load_source(task.eval, f"{what}.eval")
    kind = task_type_of(task.kind)
    if task.label_names is None and kind.names_classes:
        # The rows that are set apart may have the only one of a class.
        names = kind.read(task, train, None)[0]
        task = task.model_copy(update={"label_names": names})
    return task, *held_out(train, task, f"{what}.train")


def with_labels(data: TaskData) -> TaskData:
    """Leave rows without a label out of the training rows, where only labels teach.

    Rows whose label is a list of its own (words, answers) stay: what they lack counts nowhere.
    """
    labels = data.train.labels
    if not isinstance(labels, np.ndarray):
        return data
    each = labels.reshape(len(labels), -1)
    given = ~np.isnan(each) if each.dtype.kind == "f" else each >= 0
    known = np.asarray(given.any(axis=1))
    if known.all() or not known.any():
        return data
    logger.warning(
        "tasks[%s].train: %d of %d rows have no label and are left out: only teachers can label "
        "them",
        data.task.name,
        len(known) - known.sum(),
        len(known),
    )
    return replace(data, train=data.train.take(np.flatnonzero(known)))


def _check_column_order(data: TaskData, teacher: Teacher, number: int) -> None:
    """Refuse a column of logits that fits the labels far better in another order of the classes."""
    for side, rows, routes in (
        ("eval", data.eval, data.eval_routes),
        ("train", data.train, data.train_routes),
    ):
        if rows is None or teacher.name not in rows.supplied:
            continue
        column = rows.supplied[teacher.name]
        labels = rows.labels if column.lengths is None else np.concatenate(rows.labels)
        chosen = np.ones(len(rows), bool) if routes is None else routes == number
        if column.lengths is not None:
            chosen = np.repeat(chosen, column.lengths)
        drawn = np.random.default_rng(0).permutation(np.flatnonzero(chosen))[:_COMPARED]
        classes = data.label_names
        flags = data.kind.class_flags(labels[drawn], column.values[drawn], len(classes))
        what, task = f"teachers[{teacher.name}].logits", data.task.name
        if problem := order_problem(flags, what, classes, task=task, side=side):
            raise DataError(problem)


def _with_supplied(
    kind: TaskType,
    names: Sequence[str],
    data: Dataset,
    rows: Rows,
    columns: Mapping[str, str],
    what: str,
) -> Rows:
    """Return rows with what their data holds of teachers' logits, by the teacher's name."""
    words = [len(each) for each in rows.texts] if kind.layout == "token" else None
    width = kind.num_labels(names)
    supplied = {
        teacher: read_supplied(
            read_column(data, column, what), width, words, name=column, what=what
        )
        for teacher, column in columns.items()
    }
    return replace(rows, supplied=supplied)
