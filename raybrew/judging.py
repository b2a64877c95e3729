"""What the teachers are worth on evaluation rows, from labels that are in the store."""

import numpy as np
import torch
from torch import Tensor

from raybrew.config import DistillJob
from raybrew.errors import LabelError
from raybrew.evaluation import classification_metrics
from raybrew.labels.payload import from_storage
from raybrew.labels.store import LabelStore
from raybrew.objective import Objective
from raybrew.preparation import Preparation, PreparedTeacher
from raybrew.student.loop import STUDENT_VIEW

__all__ = ["judge_teachers"]

Metrics = dict[str, dict[str, float]]


def judge_teachers(job: DistillJob, preparation: Preparation) -> tuple[Metrics, Metrics]:
    """Compare stored logits with the labels of the evaluation rows.

    Returns:
        Metrics of each teacher, and of each task's mixture of teachers as the job mixes them.

    Raises:
        LabelError: a label is missing.
    """
    teachers: Metrics = {}
    ensembles: Metrics = {}
    for number, task in enumerate(preparation.tasks):
        if task.eval is None:
            continue
        labels = torch.from_numpy(np.array(task.eval.labels))
        mine = [teacher for teacher in preparation.teachers if teacher.task == number]
        logits = {t.teacher.name: _logits(job, t, task.eval.views[t.view].keys) for t in mine}
        for name, each in logits.items():
            teachers[name] = classification_metrics(each, labels)
        objective = Objective(job.distillation, {t.teacher.name: t.teacher.weight for t in mine})
        keys = torch.from_numpy(task.eval.views[STUDENT_VIEW].keys[:, 0].astype(np.int64))
        mixed = objective.target(torch.stack(list(logits.values())), labels, row_keys=keys)
        ensembles[task.task.name] = classification_metrics(mixed, labels)
    return teachers, ensembles


def _logits(job: DistillJob, teacher: PreparedTeacher, keys: np.ndarray) -> Tensor:
    store = LabelStore(job.labels.store).signal(teacher.spec.fingerprint, teacher.signals[0])
    found, payload = store.read(keys)
    if payload is None or not found.all():
        raise LabelError(
            f"teacher {teacher.teacher.name!r}: {int((~found).sum())} labels of evaluation rows "
            f"are missing from {job.labels.store}; were files of the store deleted?"
        )
    return from_storage(payload.values, job.labels.dtype).float()
