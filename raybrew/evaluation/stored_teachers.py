"""Metrics of the teachers on evaluation rows, from labels that are in the store."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raybrew.data.payload import Payload
from raybrew.data.split import EncodedSplit, collate_labels
from raybrew.errors import LabelError
from raybrew.evaluation.predict import StoredLabels, payload_of_rows
from raybrew.labels.store import LabelStore
from raybrew.losses.mixture import RowInputs
from raybrew.objective import Objective
from raybrew.objective.rows import RowIndex
from raybrew.teachers.teacher import ResolvedTeacher
from raybrew.training.job import ResolvedJob, ResolvedTask

logger = logging.getLogger(__name__)

Metrics = dict[str, dict[str, float]]

_BATCH = 64


def evaluate_teachers(job: ResolvedJob) -> tuple[Metrics, Metrics]:
    """Compare stored logits with the labels of the evaluation rows.

    Returns:
        Metrics of each teacher, and of each task's mixture of teachers as the job mixes them.

    Raises:
        LabelError: a label is missing, and `labels.on_full` is `stop`.
    """
    teachers: Metrics = {}
    ensembles: Metrics = {}
    for task in job.tasks:
        # No teachers: all of them were dropped.
        if task.eval is None or not task.teachers:
            continue
        try:
            stored = StoredTeachers(job, task, task.eval)
            predictions = stored.predictions()
        except LabelError as error:
            if job.labels.on_full == "stop":
                raise
            # The student is trained: it is worth more than what it is compared with.
            logger.error("teachers of task %r are not evaluated: %s", task.name, error)
            continue
        for teacher, predicted in zip(task.teachers, predictions, strict=False):
            teachers[teacher.name] = stored.metrics(predicted)
        ensembles[task.name] = stored.metrics(predictions[-1])
    return teachers, ensembles


class StoredTeachers:
    """Evaluation rows of a task and its teachers' stored logits for them.

    Args:
        job: with the store.
        task: with at least one teacher.
        split: its evaluation rows.
        rows: which of them, int64 (n,); all if left out.

    Raises:
        LabelError: a label is missing.
    """

    def __init__(
        self,
        job: ResolvedJob,
        task: ResolvedTask,
        split: EncodedSplit,
        rows: np.ndarray | None = None,
    ):
        self._task, self._split, self._task_type = task, split, task.kind
        self._rows = np.arange(len(split)) if rows is None else rows
        self._answers = [
            _stored(job, t, split.views[t.view].keys[self._rows]) for t in task.teachers
        ]
        self._signal = task.teachers[0].signals[0]
        weights = {teacher.name: teacher.config.weight for teacher in task.teachers}
        self._objective = Objective(task.objective, weights, kind=self._task_type)

    def predictions(self) -> list[Payload]:
        """Return what each teacher predicts, and last what their mixture does."""
        places = np.arange(len(self._rows))
        parts = [self._of_batch(places[n : n + _BATCH]) for n in range(0, len(places), _BATCH)]
        return [Payload.concat(each) for each in zip(*parts, strict=True)]

    def metrics(self, predicted: Payload) -> dict[str, float]:
        """Return the metrics of predictions, those that the stored logits suffice for."""
        metrics = self._task_type.metrics(
            predicted, self._split, self._rows, self._task.label_names
        )
        hidden = () if self._signal.top_k is None else self._task_type.dense_metrics
        return {name: value for name, value in metrics.items() if name not in hidden}

    def _of_batch(self, places: np.ndarray) -> list[Payload]:
        rows = self._rows[places]
        lengths = self._split.student.lengths_of(rows)
        length = int(lengths.max())
        labels = self._task_type.labels_of(collate_labels(self._split, rows, length))
        mask = torch.from_numpy(np.arange(length) < lengths[:, None])
        index = RowIndex.of(self._task_type.layout, labels[0], mask)
        taken = [index.of_labels(each) for each in labels]
        widths = self._task_type.widths(self._task.num_labels)
        by_output = [self._logits(index, places, widths, n) for n in range(len(widths))]
        keys = torch.from_numpy(self._split.student.keys[rows, 0].astype(np.int64))
        routes = self._split.routes
        mixed = [
            self._objective.target(
                each,
                RowInputs(
                    taken[output],
                    None if routes is None else index.of_examples(torch.from_numpy(routes[rows])),
                    index.of_examples(keys),
                ),
            )
            for output, each in enumerate(by_output)
        ]
        answers = [[each[k] for each in by_output] for k in range(len(self._task.teachers))]
        return [payload_of_rows(self._task_type, index, one, taken) for one in [*answers, mixed]]

    def _logits(
        self, index: RowIndex, places: np.ndarray, widths: Sequence[int], output: int
    ) -> Tensor:
        """Return the logits of one output of each teacher, (K, R, C)."""
        found, rows = [], self._rows[places]
        for teacher, payload in zip(self._task.teachers, self._answers, strict=True):
            stored = StoredLabels(payload.take(places), self._signal, teacher.view, teacher.order)
            one = stored.rows(index, self._split, rows, widths, output)
            logits = one.logits
            assert isinstance(logits, Tensor), "classes that top-k leaves out are filled up"
            if one.available is not None:
                # Where a teacher has no answer, no class is better than another.
                logits = logits.masked_fill(~one.available[:, None], 0.0)
            found.append(logits)
        return torch.stack(found)


def _stored(job: ResolvedJob, teacher: ResolvedTeacher, keys: np.ndarray) -> Payload:
    signal = teacher.signals[0]
    store = LabelStore(job.store).signal(teacher.fingerprint, signal)
    found, payload = store.read(keys)
    if payload is None or not found.all():
        raise LabelError(
            f"teacher {teacher.name!r}: {int((~found).sum())} labels of evaluation rows "
            f"are missing from {job.labels.store}; were files of the store deleted?"
        )
    return payload
