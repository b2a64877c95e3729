"""Predictions of a saved model for a file of rows, written to a file with the user's columns.

rows.csv ──► 1,024 rows ──► texts ──► model ──► predicted_label, predicted_probability, …
                  └───────── their columns ────────────────┴──► out.csv
"""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from raybrew.config import Task
from raybrew.config.section import user_path
from raybrew.data.files import to_json
from raybrew.data.sources import load_source
from raybrew.errors import ConfigError, DataError, did_you_mean
from raybrew.evaluation.saved_models import BLOCK, open_model, saved_task, task_type_in
from raybrew.models.inputs import trained_positions
from raybrew.models.pretrained import read_config
from raybrew.models.students import task_folders
from raybrew.tasks.task_type import Prediction

PREFIX = "predicted_"
"""Of the columns that are added."""
STANDARD = "-"
"""Standard input, or output."""
_LONGEST = 512
"""Tokens that a model reads at most whose folder doesn't say."""
_FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
_TYPES = {
    "label": pa.string(),
    "probability": pa.float64(),
    "labels": pa.list_(pa.string()),
    "tags": pa.list_(pa.string()),
    "answer": pa.string(),
    "score": pa.float64(),
    "tokens": pa.int64(),
}
"""Of predicted columns, for parquet; the others are numbers, or follow from the first rows."""

Write = Callable[[list[dict[str, Any]]], None]


def predict_file(
    model: str,
    source: str,
    output: str,
    *,
    task: str | None = None,
    text: str | None = None,
    batch_size: int = 64,
) -> int:
    """Predict the rows of a file; a block of rows is in memory at a time.

    Args:
        model: folder of a student or of any model that transformers loads, or a hub id.
        source: a file that `load_source` reads, or `-`, standard input as CSV or JSONL.
        output: a file .csv, .tsv, .jsonl or .parquet, or `-`, standard output in the form of the
            input. It is written whole or not at all.
        task: which one of a student of several tasks.
        text: column of the text, or both of a pair with a comma between; those that the model was
            trained on if left out.
        batch_size: examples of a forward.

    Returns:
        Rows that were written.

    Raises:
        ConfigError: the model can't be loaded, or it isn't clear which task is meant.
        DataError: the rows can't be read, or one has no text.
    """
    folder = folder_of(model, task)
    suffix = _suffix(output)
    with _rows_of(source) as (rows, form):
        section = with_columns(saved_task(folder), folder, text)
        _check_texts(rows, section, source)
        opened = open_model(folder, section)
        blocks = opened.predictions(rows, source, batch_size=batch_size)
        write_predictions(rows, blocks, output, suffix or form)
        return len(rows)


def write_predictions(
    rows: Dataset, blocks: Iterable[list[Prediction]], output: str, form: str
) -> None:
    """Write rows with what is predicted of each.

    Args:
        rows: all of them.
        blocks: predictions, `BLOCK` of them at a time.
        output: a file, or `-`.
        form: `.csv`, `.tsv`, `.jsonl` or `.parquet`.

    Raises:
        DataError: a column has the name of a predicted one, or the form can't hold a value.
    """
    with _opened(output, form) as write:
        for number, found in enumerate(blocks):
            start = number * BLOCK
            part = rows.select(range(start, min(start + BLOCK, len(rows)))).to_list()
            added = [{PREFIX + key: value for key, value in one.items()} for one in found]
            if clash := rows.column_names and {*rows.column_names} & {*added[0]}:
                raise DataError(
                    f"{output}: expected columns without {', '.join(sorted(clash))}, which are "
                    "written; rename them"
                )
            write([own | more for own, more in zip(part, added, strict=True)])


def folder_of(model: str, task: str | None) -> str:
    """Return the folder of a task's model, for a student of several tasks; else the model."""
    folders = task_folders(user_path(model, "model"))
    if not folders:
        if task is not None:
            raise ConfigError(f"--task: expected none for {model!r}, a model of one task")
        return model
    if task not in folders:
        got = "none" if task is None else f"{task!r}{did_you_mean(task, folders)}"
        raise ConfigError(f"--task: expected one of {', '.join(folders)}, got {got}")
    return str(folders[task])


def with_columns(task: Task | None, folder: str, text: str | None) -> Task:
    """Return the task of a model with the columns that are asked for."""
    if task is None:
        # Its folder isn't raybrew's, or an older one: the class tells the task type.
        positions = trained_positions(read_config(folder, "model")) or _LONGEST
        length = max(4, min(positions, _LONGEST))
        task = Task(name="task", kind=task_type_in(folder), train=STANDARD, max_length=length)
    if text is None:
        return task
    first, _, second = (part.strip() for part in text.partition(","))
    return task.model_copy(update={"text": first, "text_pair": second or None})


def _check_texts(rows: Dataset, task: Task, source: str) -> None:
    """Refuse rows without text, before the first of them is predicted."""
    for name in (task.text, task.text_pair):
        if name is None:
            continue
        if name not in rows.column_names:
            names = rows.column_names
            raise DataError(
                f"{source}: expected a column {name!r}, as the model was trained on, got "
                f"{', '.join(names)}{did_you_mean(name, names)}; --text names another one"
            )
        for start in range(0, len(rows), BLOCK):
            for row, value in enumerate(rows[start : start + BLOCK][name], start):
                if value is None or value != value:
                    raise DataError(f"{source}: row {row}: expected text in {name!r}, got none")


def _suffix(output: str) -> str:
    suffix = Path(output).suffix.lower()
    if output == STANDARD or suffix in _FORMATS:
        return "" if output == STANDARD else suffix
    raise ConfigError(f"-o: expected a file {', '.join(_FORMATS)}, or -, got {output!r}")


@contextmanager
def _rows_of(source: str) -> Iterator[tuple[Dataset, str]]:
    """Load the rows, and say in which form they are written where the output names none."""
    if source != STANDARD:
        suffix = Path(source).suffix.lower()
        yield load_source(source, "predict"), suffix if suffix in _FORMATS[:3] else ".jsonl"
        return
    text = sys.stdin.read()
    form = ".jsonl" if text.lstrip().startswith("{") else ".csv"
    with NamedTemporaryFile("w", suffix=form, encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        yield load_source(file.name, "standard input"), form


@contextmanager
def _opened(output: str, form: str) -> Iterator[Write]:
    """Open a file for rows; it gets its name when all of them are written."""
    if output == STANDARD:
        yield _writer(sys.stdout, form, output)
        return
    place = user_path(output, "-o")
    if place.is_dir() or not place.absolute().parent.is_dir():
        raise ConfigError(f"-o: expected a file in a folder that is there, got {output!r}")
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        if form == ".parquet":
            with _Parquet(temporary) as parquet:
                yield parquet.write
        else:
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                yield _writer(stream, form, output)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def _writer(stream: Any, form: str, output: str) -> Write:
    if form == ".jsonl":
        return lambda rows: stream.writelines(to_json(row, default=str) + "\n" for row in rows)
    options: dict[str, Any] = {"lineterminator": "\n"}
    if form == ".tsv":
        options |= {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
    writer, header = csv.writer(stream, **options), []

    def write(rows: list[dict[str, Any]]) -> None:
        try:
            if not header:
                header.extend(rows[0])
                writer.writerow(header)
            writer.writerows([[_cell(row[name]) for name in header] for row in rows])
        except csv.Error as error:
            raise DataError(
                f"{output}: a .tsv file can't hold tabs or line ends in a value ({error}); write "
                ".csv, .jsonl or .parquet"
            ) from error

    return write


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


class _Parquet:
    """A parquet file whose schema is that of its first block, with the types of `_TYPES`."""

    def __init__(self, path: Path):
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "_Parquet":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows."""
        if self._writer is None:
            table = pa.Table.from_pylist(list(rows))
            fields = [
                pa.field(f.name, _TYPES.get(f.name.removeprefix(PREFIX), f.type))
                if f.name.startswith(PREFIX)
                else f
                for f in table.schema
            ]
            self._writer = pq.ParquetWriter(self._path, pa.schema(fields))
        self._writer.write_table(pa.Table.from_pylist(list(rows), self._writer.schema))
