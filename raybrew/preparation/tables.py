"""The data of a task: read from its columns, checked, encoded by each tokenizer that reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from raybrew.config import Task, Teacher
from raybrew.data.augmented import augmented
from raybrew.data.columns import Rows, read_column, read_routes
from raybrew.data.sources import load_source
from raybrew.data.split import EncodedSplit
from raybrew.data.supplied import read_supplied
from raybrew.data.transfer import with_transfer
from raybrew.kinds import Kind, kind_of
from raybrew.preparation.prepared import PreparedTask

__all__ = ["Table", "encode_table", "read_table"]


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
    """

    task: Task
    label_names: tuple[str, ...]
    train: Rows
    eval: Rows | None
    train_routes: np.ndarray | None = None
    eval_routes: np.ndarray | None = None

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
    names, rows, eval_rows = kind_of(task.kind).read(task, train, evaluation)
    routed = [teacher.name for teacher in teachers]
    table = Table(
        task=task,
        label_names=names,
        train=_with_supplied(task, names, train, rows, teachers, f"{what}.train"),
        eval=eval_rows,
        train_routes=read_routes(task, train, routed, f"{what}.train"),
    )
    if evaluation is None or eval_rows is None:
        return table
    return replace(
        table,
        eval=_with_supplied(task, names, evaluation, eval_rows, teachers, f"{what}.eval"),
        eval_routes=read_routes(task, evaluation, routed, f"{what}.eval"),
    )


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
) -> PreparedTask:
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
    return PreparedTask(
        task=table.task,
        label_names=table.label_names,
        train=splits["train"],
        eval=splits.get("eval"),
        folders=folders,
        num_labels=num_labels,
    )
