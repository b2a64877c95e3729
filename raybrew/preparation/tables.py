"""The data of a task: read from its columns, checked, encoded by each tokenizer that reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from raybrew.config import Task
from raybrew.data.columns import Rows, read_labels, read_routes, read_rows
from raybrew.data.encoding import EncodedSplit, EncodedView, encode
from raybrew.data.sources import load_source
from raybrew.preparation.prepared import PreparedTask

__all__ = ["Table", "encode_table", "read_table"]


@dataclass(frozen=True)
class Table:
    """The rows of a task.

    Args:
        task: the job's section.
        train: texts to learn from.
        eval: texts to evaluate on.
        label_names: classes, in the order of the logits.
        train_labels: int64 (N,), -1 = none.
        eval_labels: the same of the evaluation rows.
        train_routes: int64 (N,), index of each row's teacher; None without a column for it.
        eval_routes: the same of the evaluation rows.
    """

    task: Task
    train: Rows
    eval: Rows | None
    label_names: tuple[str, ...]
    train_labels: np.ndarray
    eval_labels: np.ndarray | None
    train_routes: np.ndarray | None = None
    eval_routes: np.ndarray | None = None


def read_table(task: Task, teachers: Sequence[str] = ()) -> Table:
    """Read and check the rows of a task.

    Args:
        task: the job's section.
        teachers: of the task, for the column that names one a row.
    """
    what = f"tasks[{task.name}]"
    train: Dataset = load_source(task.train, f"{what}.train")
    evaluation = None if task.eval is None else load_source(task.eval, f"{what}.eval")
    names, train_labels, eval_labels = read_labels(task, train, evaluation)
    return Table(
        task=task,
        train=read_rows(task, train, f"{what}.train"),
        eval=None if evaluation is None else read_rows(task, evaluation, f"{what}.eval"),
        label_names=names,
        train_labels=train_labels,
        eval_labels=eval_labels,
        train_routes=read_routes(task, train, teachers, f"{what}.train"),
        eval_routes=None
        if evaluation is None
        else read_routes(task, evaluation, teachers, f"{what}.eval"),
    )


def encode_table(
    table: Table, tokenizers: Mapping[str, PreTrainedTokenizerBase], folder: Path
) -> PreparedTask:
    """Encode a task's splits, save them, and map them into memory.

    Args:
        table: the rows.
        tokenizers: by name of the view.
        folder: where they are saved.
    """
    splits: dict[str, EncodedSplit] = {}
    folders: dict[str, str] = {}
    truncated = 0
    sides = [("train", table.train, table.train_labels, table.train_routes)]
    if table.eval is not None and table.eval_labels is not None:
        sides.append(("eval", table.eval, table.eval_labels, table.eval_routes))
    for side, rows, labels, routes in sides:
        views: dict[str, EncodedView] = {}
        for name, tokenizer in tokenizers.items():
            views[name], cut = encode(tokenizer, rows.texts, rows.pairs, table.task.max_length)
            truncated += cut
        place = folder / table.task.name / side
        EncodedSplit(views, labels, routes).save(place)
        splits[side], folders[side] = EncodedSplit.load(place), str(place)
    return PreparedTask(
        task=table.task,
        label_names=table.label_names,
        train=splits["train"],
        eval=splits.get("eval"),
        folders=folders,
        truncated=truncated,
    )
