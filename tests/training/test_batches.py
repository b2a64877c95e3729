"""What a batch costs follows from the batch: the same however many examples the data has."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import raybrew as rb
from raybrew.data.encoding import EncodedView
from raybrew.data.payload import Payload, Signal
from raybrew.data.split import IGNORED, STUDENT_VIEW, EncodedSplit, Padding
from raybrew.labels.source import LabelSource, TeacherLabels
from raybrew.teachers.teacher import ResolvedTeacher
from raybrew.training.batches import batch_counts, micro_batches_of
from raybrew.training.job import ResolvedTask
from raybrew.training.world import World

TOKENS, BATCH = 6, 8


class Counted(np.ndarray):
    """An array of the data that counts the elements which are read of it."""

    read = 0

    def __getitem__(self, index: Any) -> Any:
        found = np.asarray(super().__getitem__(index))
        Counted.read += found.size
        return found

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **more: Any) -> Any:
        return getattr(ufunc, method)(*_whole(inputs), **more)

    def __array_function__(self, function: Any, types: Any, inputs: Any, more: Any) -> Any:
        return function(*_whole(inputs), **more)


def _whole(inputs: Any) -> list[Any]:
    Counted.read += sum(each.size for each in inputs if isinstance(each, Counted))
    return [np.asarray(each) if isinstance(each, Counted) else each for each in inputs]


def counted(array: np.ndarray) -> Counted:
    return array.view(Counted)


class Store:
    """Has every label."""

    def read(self, keys: np.ndarray) -> tuple[np.ndarray, Payload]:
        rows = len(keys)
        values = np.zeros(rows * TOKENS * 2, np.float32)
        return np.ones(rows, bool), Payload(values, np.arange(rows + 1) * TOKENS * 2)


def task_of(num_rows: int) -> ResolvedTask:
    tokens = num_rows * TOKENS
    view = EncodedView(
        input_ids=counted(np.ones(tokens, np.int32)),
        token_type_ids=counted(np.zeros(tokens, np.int8)),
        offsets=counted(np.arange(num_rows + 1) * TOKENS),
        keys=counted(np.arange(2 * num_rows, dtype=np.uint64).reshape(-1, 2)),
    )
    labels = np.zeros(tokens, np.int64)
    labels[::2] = IGNORED
    split = EncodedSplit(
        views={STUDENT_VIEW: view, "other": view},
        labels=counted(labels),
        routes=counted(np.zeros(num_rows, np.int64)),
        per_token=True,
        alignments={"other": counted(np.zeros(tokens, np.int32))},
    )
    match: Any = SimpleNamespace(padding_counts=True)
    teacher = ResolvedTeacher(
        config=rb.Teacher(name="a", task="t", model="a"),
        kind="token-classification",
        fingerprint="",
        view="other",
        signals=(Signal(),),
    )
    config = rb.Task(name="t", kind="token-classification", train="t")
    task = ResolvedTask(config, (), 0, teachers=(teacher,), matches=(match,))
    vars(task).update(train=split, eval=None)  # not mapped from files
    return task


def elements_read(num_rows: int) -> int:
    """Make a batch of the last rows of the data ready, with its labels."""
    task = task_of(num_rows)
    rows = num_rows - BATCH + np.arange(BATCH)
    store: Any = Store()
    source = LabelSource(
        teachers=[TeacherLabels("a", 0, task.train.views["other"], {Signal(): store})],
        client=None,
        rows_of=lambda step: (0, rows),
        num_steps=1,
    )
    Counted.read = 0
    answers = source.get(0)
    micros = micro_batches_of(task, rows, answers, world=World(), passes=2, padding=Padding(0))
    assert sum(len(micro.labels) for micro in micros) == BATCH
    _, lengths, unreached = batch_counts(task, rows, 1, 2)
    assert unreached == 0
    assert np.concatenate(lengths).tolist() == [TOKENS] * BATCH
    return Counted.read


@pytest.mark.parametrize("num_rows", [100, 10_000])
def test_a_batch_reads_what_it_holds_of_the_data(num_rows):
    assert 0 < elements_read(num_rows) == elements_read(BATCH)
