"""Transfer rows: other data sets that a task's teachers label, appended to its training rows.

train     text  label ──┐
transfer  text  (null) ─┴──► one data set; what the others' labels say is not looked at
"""

from collections.abc import Sequence

from datasets import Dataset, Features, concatenate_datasets

from raybrew.config import Task
from raybrew.data.columns import read_column
from raybrew.data.sources import load_source, quiet_datasets
from raybrew.errors import DataError

__all__ = ["with_transfer"]


def with_transfer(train: Dataset, task: Task, supplied: Sequence[str], what: str) -> Dataset:
    """Append the rows of `task.transfer`, without labels, to the training rows.

    Args:
        train: N rows.
        task: names the sources and the columns.
        supplied: further columns that are read, those of teachers' logits.
        what: the job's task, for messages.

    Returns:
        The N rows first; of either, the columns that are read.

    Raises:
        DataError: a source lacks a column, or holds something else in it.
    """
    if not task.transfer:
        return train
    named = (task.text, task.text_pair, task.teacher_column, *supplied)
    read = list(dict.fromkeys(name for name in named if name is not None))
    _check_columns(train, read, f"{what}.train")
    kept = [name for name in (*read, task.label) if name in train.column_names]
    features = Features({name: train.features[name] for name in kept})
    parts = [
        _part(source, read, features, f"{what}.transfer[{number}]")
        for number, source in enumerate(task.transfer)
    ]
    return concatenate_datasets([train.select_columns(kept), *parts])


def _part(source: str | Dataset, read: Sequence[str], features: Features, what: str) -> Dataset:
    rows = load_source(source, what)
    _check_columns(rows, read, what)
    rows = rows.select_columns(list(read))
    for name in features.keys() - set(read):
        rows = rows.add_column(name, [None] * len(rows), feature=features[name])
    try:
        with quiet_datasets():
            return rows.cast(Features({name: features[name] for name in rows.column_names}))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{what}: expected columns as those of the training rows, "
            f"{', '.join(f'{name}: {features[name]}' for name in read)}, got: {error}"
        ) from error


def _check_columns(rows: Dataset, names: Sequence[str], what: str) -> None:
    for name in names:
        read_column(rows.select([0]), name, what)
