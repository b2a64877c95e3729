"""What a job leaves open, chosen from how the student starts and what its data has.

A value that a job states is never changed. What is chosen stands in the run's `job.yaml`, and a
resumed run takes it from there.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from raybrew.config import DistillationConfig, DistillJob, Student, TrainingConfig, TrainJob

if TYPE_CHECKING:  # importing tasks takes torch, and a run's folder is read without it
    from raybrew.tasks.task_data import TaskData

HARD_LABEL_WEIGHT = 0.5
"""Beside a weight of 1 of the soft labels, whose loss has gradients of its size (`scale_t2`)."""
_CHOSEN = (
    ("training", "learning_rate"),
    ("training", "num_epochs"),
    ("distillation", "hard_label_weight"),
)
"""Sections and settings that are chosen where a job leaves them out."""


class _Start(NamedTuple):
    """How a student starts, and what suits it.

    Args:
        words: for the log.
        learning_rate: peak, for AdamW with warm-up.
        num_steps: optimizer steps to aim at.
        least: epochs at least.
        most: epochs at most.
    """

    words: str
    learning_rate: float
    num_steps: int
    least: int
    most: int


_SCRATCH = _Start("the student starts from random weights", 1e-3, 2000, 4, 40)
_LARGE_SCRATCH = _SCRATCH._replace(learning_rate=3e-4)
_LAYERS = _Start("the student starts from layers of a trained model", 3e-4, 1000, 3, 15)
_PRETRAINED = _Start("the student starts from pretrained weights", 1e-4, 800, 3, 10)
_ADAPTERS = _Start("adapters learn in place of the student's weights", 1e-3, 800, 3, 10)
_LARGE = 512
"""Hidden size from which random weights don't bear the higher rate."""
_LARGE_PRESETS = ("T6", "T3")


def choose_settings(
    job: DistillJob | TrainJob, data: Sequence["TaskData"]
) -> DistillJob | TrainJob:
    """Return the job with what it leaves open.

    Args:
        job: its learning rate, length and weight of the hard labels may be None.
        data: rows of its tasks.
    """
    start = _start_of(job.model if isinstance(job, TrainJob) else job.student)
    training, changes = job.training, dict[str, Any]()
    if training.learning_rate is None:
        changes["learning_rate"] = start.learning_rate
    if training.num_epochs is None and training.num_steps is None:
        changes["num_epochs"] = _num_epochs(start, training, data)
    job = job.model_copy(update={"training": training.model_copy(update=changes)})
    if isinstance(job, DistillJob) and job.distillation.hard_label_weight is None:
        weights = {hard_label_weight(rows) for rows in data}
        if len(weights) == 1:
            objective = job.distillation.model_copy(update={"hard_label_weight": weights.pop()})
            return job.model_copy(update={"distillation": objective})
    return job


def with_hard_labels(config: DistillationConfig, rows: "TaskData") -> DistillationConfig:
    """Return a task's objective with the weight of its labels, where the job leaves it out."""
    if config.hard_label_weight is not None:
        return config
    return config.model_copy(update={"hard_label_weight": hard_label_weight(rows)})


def hard_label_weight(rows: "TaskData") -> float:
    """Return the weight of the labels of a task's rows; 0 where no row has one."""
    return HARD_LABEL_WEIGHT if rows.kind.num_labelled(rows.train) else 0.0


def describe_chosen(given: DistillJob | TrainJob, taken: DistillJob | TrainJob) -> list[str]:
    """Return a line about each setting that was chosen.

    Args:
        given: the job as its user wrote it.
        taken: the same from `choose_settings`.
    """
    start = _start_of(given.model if isinstance(given, TrainJob) else given.student)
    lines = []
    if given.training.learning_rate is None:
        lines.append(f"training.learning_rate: {taken.training.learning_rate:g}, as {start.words}")
    if given.training.num_epochs is None and given.training.num_steps is None:
        lines.append(
            f"training.num_epochs: {taken.training.num_epochs}, for some {start.num_steps} steps "
            f"({start.least} to {start.most} epochs)"
        )
    if isinstance(given, DistillJob) and given.distillation.hard_label_weight is None:
        assert isinstance(taken, DistillJob), "a job keeps its type"
        lines.append(_describe_hard_labels(taken.distillation.hard_label_weight))
    return lines


def chosen_values(taken: DistillJob | TrainJob, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a job's plain values with what was chosen.

    Args:
        taken: the job from `choose_settings`.
        plain: values of the job as its user wrote it.
    """
    sections: dict[str, Any] = {}
    for section, name in _CHOSEN:
        values = getattr(taken, section, None)
        if values is not None:
            sections.setdefault(section, dict(plain[section]))[name] = getattr(values, name)
    return sections


def adopt_chosen(job: DistillJob | TrainJob, saved: Mapping[str, Any]) -> DistillJob | TrainJob:
    """Return the job that resumes a run, with what the run has chosen where the job says nothing.

    Args:
        job: as its user wrote it.
        saved: the `job.yaml` of the run.
    """
    for section, name in _CHOSEN:
        values = getattr(job, section, None)
        chosen = (saved.get(section) or {}).get(name)
        if values is None or chosen is None or getattr(values, name) is not None:
            continue
        if name == "num_epochs" and values.num_steps is not None:
            continue
        job = job.model_copy(update={section: values.model_copy(update={name: chosen})})
    return job


def _describe_hard_labels(weight: float | None) -> str:
    if weight is None:
        return f"distillation.hard_label_weight: {HARD_LABEL_WEIGHT} for the tasks with labels"
    if not weight:
        return "distillation.hard_label_weight: 0, as no row has a label: soft labels alone teach"
    return f"distillation.hard_label_weight: {weight:g}, as there are labels"


def _start_of(student: Student) -> _Start:
    if student.lora is not None:
        return _ADAPTERS
    if student.layers_from is not None:
        return _LAYERS
    if student.model is not None:
        return _PRETRAINED
    large = student.preset in _LARGE_PRESETS
    if student.config is not None:
        # Left out, it is that of the model whose configuration this changes.
        size = student.config.get("hidden_size", _LARGE)
        large = not isinstance(size, int) or size >= _LARGE  # anything else is refused later
    return _LARGE_SCRATCH if large else _SCRATCH


def _num_epochs(start: _Start, training: TrainingConfig, data: Sequence["TaskData"]) -> int:
    steps = sum(
        math.ceil(len(rows.train) / rows.task.rounds / batch_size)
        for rows in data
        for batch_size in [rows.task.batch_size or training.batch_size]
    )
    return min(max(math.ceil(start.num_steps / max(steps, 1)), start.least), start.most)
