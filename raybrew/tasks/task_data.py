"""The rows of a task.

Read from the columns of its data, checked, and encoded by each tokenizer.
"""

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
from raybrew.data.sources import load_source, with_transfer
from raybrew.data.split import EncodedSplit
from raybrew.errors import DataError
from raybrew.tasks import kind_of
from raybrew.tasks.task_type import Kind
from raybrew.training.job import ResolvedTask

_COMPARED = 4096
"""Rows whose logits are compared with labels at most."""


@dataclass(frozen=True)
class Table:
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
    def kind(self) -> Kind:
        """Of the task."""
        return kind_of(self.task.kind)


def read_table(task: Task, teachers: Sequence[Teacher] = ()) -> Table:
    """Read and check the rows of a task.

    Args:
        task: the job's section.
        teachers: of the task, for the column that names one a row, and for those that are
            columns themselves.
    """
    what = f"tasks[{task.name}]"
    supplied = [teacher.logits for teacher in teachers if teacher.logits is not None]
    train = with_transfer(load_source(task.train, f"{what}.train"), task, supplied, what)
    if task.augmentation is not None:
        texts = [name for name in (task.text, task.text_pair) if name is not None]
        train = augmented(
            train, task.augmentation, texts=texts, label=task.label, what=f"{what}.train"
        )
    evaluation = None if task.eval is None else load_source(task.eval, f"{what}.eval")
    kind = kind_of(task.kind)
    names, rows, eval_rows = kind.read(task, train, evaluation)
    routed = [teacher.name for teacher in teachers]
    table = Table(
        task=task,
        label_names=names,
        train=_with_supplied(task, names, train, rows, teachers, f"{what}.train"),
        eval=eval_rows,
        train_routes=read_routes(task, train, routed, f"{what}.train"),
        order_assumed=kind.names_classes
        and order_is_assumed(task, names, train.features[task.label]),
    )
    if evaluation is not None and eval_rows is not None:
        table = replace(
            table,
            eval=_with_supplied(task, names, evaluation, eval_rows, teachers, f"{what}.eval"),
            eval_routes=read_routes(task, evaluation, routed, f"{what}.eval"),
        )
    if kind.names_classes:
        for number, teacher in enumerate(teachers):
            _check_column_order(table, teacher, number)
    return table


def _check_column_order(table: Table, teacher: Teacher, number: int) -> None:
    """Refuse a column of logits that fits the labels far better in another order of the classes."""
    for side, rows, routes in (
        ("eval", table.eval, table.eval_routes),
        ("train", table.train, table.train_routes),
    ):
        if rows is None or teacher.name not in rows.supplied:
            continue
        column = rows.supplied[teacher.name]
        labels = rows.labels if column.lengths is None else np.concatenate(rows.labels)
        chosen = np.ones(len(rows), bool) if routes is None else routes == number
        if column.lengths is not None:
            chosen = np.repeat(chosen, column.lengths)
        drawn = np.random.default_rng(0).permutation(np.flatnonzero(chosen))[:_COMPARED]
        classes = table.label_names
        flags = table.kind.class_flags(labels[drawn], column.values[drawn], len(classes))
        what, task = f"teachers[{teacher.name}].logits", table.task.name
        if problem := order_problem(flags, what, classes, task=task, side=side):
            raise DataError(problem)


def _with_supplied(
    task: Task,
    names: Sequence[str],
    data: Dataset,
    rows: Rows,
    teachers: Sequence[Teacher],
    what: str,
) -> Rows:
    """Return rows with what their data holds of teachers' logits."""
    kind = kind_of(task.kind)
    words = [len(each) for each in rows.texts] if kind.layout == "token" else None
    found = {
        teacher.name: read_supplied(
            read_column(data, teacher.logits, what),
            kind.num_labels(names),
            words,
            name=teacher.logits,
            what=what,
        )
        for teacher in teachers
        if teacher.logits is not None
    }
    return replace(rows, supplied=found)


def encode_table(
    table: Table,
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    folder: Path,
    num_labels: int,
) -> ResolvedTask:
    """Encode a task's splits, save them, and map them into memory.

    Args:
        table: the rows.
        tokenizers: by name of the view.
        folder: where they are saved.
        num_labels: logits of a row.
    """
    splits: dict[str, EncodedSplit] = {}
    folders: dict[str, str] = {}
    sides = [("train", table.train, table.train_routes)]
    if table.eval is not None:
        sides.append(("eval", table.eval, table.eval_routes))
    for side, rows, routes in sides:
        split = table.kind.encode(table.task, rows, tokenizers)
        if routes is not None:
            # A row may have become several examples.
            split = replace(split, routes=routes if split.source is None else routes[split.source])
        place = folder / table.task.name / side
        split.save(place)
        splits[side], folders[side] = EncodedSplit.load(place), str(place)
    return ResolvedTask(
        task=table.task,
        label_names=table.label_names,
        train=splits["train"],
        eval=splits.get("eval"),
        folders=folders,
        num_labels=num_labels,
    )
