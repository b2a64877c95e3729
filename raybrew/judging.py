"""What the teachers are worth on evaluation rows, from labels that are in the store."""

import numpy as np
import torch
from torch import Tensor

from raybrew.config import DistillJob
from raybrew.errors import LabelError
from raybrew.evaluation import classification_metrics
from raybrew.labels.payload import from_storage
from raybrew.labels.spec import StoreSpec
from raybrew.labels.store import LabelStore
from raybrew.labels.top_k import unpack_top_k
from raybrew.losses.soft import TopK
from raybrew.objective import Objective
from raybrew.preparation import Preparation, PreparedTeacher
from raybrew.student.batches import STUDENT_VIEW

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
        logits = {
            t.teacher.name: _logits(job, t, task.eval.views[t.view].keys, len(task.label_names))
            for t in mine
        }
        for name, each in logits.items():
            teachers[name] = classification_metrics(each, labels)
        objective = Objective(job.distillation, {t.teacher.name: t.teacher.weight for t in mine})
        keys = torch.from_numpy(task.eval.views[STUDENT_VIEW].keys[:, 0].astype(np.int64))
        routes = None if task.eval.routes is None else torch.from_numpy(task.eval.routes.copy())
        stacked = torch.stack(list(logits.values()))
        mixed = objective.target(stacked, labels, row_keys=keys, route=routes)
        ensembles[task.task.name] = classification_metrics(mixed, labels)
    return teachers, ensembles


def _logits(job: DistillJob, teacher: PreparedTeacher, keys: np.ndarray, classes: int) -> Tensor:
    signal = teacher.signals[0]
    store = LabelStore(StoreSpec.of(job.labels)).signal(teacher.spec.fingerprint, signal)
    found, payload = store.read(keys)
    if payload is None or not found.all():
        raise LabelError(
            f"teacher {teacher.teacher.name!r}: {int((~found).sum())} labels of evaluation rows "
            f"are missing from {job.labels.store}; were files of the store deleted?"
        )
    if signal.top_k is None:
        return from_storage(payload.values, signal.dtype).float()
    return _filled_up(unpack_top_k(payload.values, signal), classes)


def _filled_up(top_k: TopK, classes: int) -> Tensor:
    """Put every class that was left out below those that were kept; only the order counts."""
    lowest = top_k.values.amin(dim=-1, keepdim=True)
    rest = lowest.expand(-1, classes).clone() - 1.0
    return rest.scatter(-1, top_k.indices, top_k.values)
