"""The whole job, and what its sections say of each other."""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator, model_validator

from raybrew.config.distillation import DistillationConfig, Objective
from raybrew.config.mixing import MixingConfig
from raybrew.config.people import Student, Teacher
from raybrew.config.section import Many, Section
from raybrew.config.task import Task
from raybrew.config.training import LabelConfig, TrackingConfig, TrainingConfig

__all__ = ["DistillJob", "TrainJob"]


_FILE = re.compile(r"\.(json|safetensors|bin|txt|model|jinja|py|md)$", re.IGNORECASE)
"""Names that transformers gives to files of a model's folder end so."""


class _Job(Section):
    """What training with and without teachers have in common."""

    tasks: Many[Task] = Field(min_length=1, description="Tasks of the student.")
    training: TrainingConfig = Field(description="Steps, optimizer, seed.")
    mixing: MixingConfig = Field(
        default_factory=lambda: MixingConfig(),
        description="How several tasks come together in one run.",
    )
    tracking: TrackingConfig = Field(
        default_factory=lambda: TrackingConfig(), description="Who follows the run."
    )

    @field_validator("tasks")
    @classmethod
    def _task_names(cls, tasks: Sequence[Task]) -> Sequence[Task]:
        _unique([task.name for task in tasks])
        files = [task.name for task in tasks if _FILE.search(task.name)]
        if files and len(tasks) > 1:
            raise ValueError(
                f"expected no task named as a file is, got {', '.join(files)}: a student of "
                "several tasks has a folder for each of them beside files such as config.json"
            )
        return tasks

    def to_plain(self) -> dict[str, Any]:
        """Return the job as values that YAML and JSON can hold."""
        return self.model_dump(mode="json")


class TrainJob(_Job):
    """Supervised training of one model, without teachers: how teachers are made."""

    model: Student = Field(description="The model to train.")

    @field_validator("tasks")
    @classmethod
    def _labelled(cls, tasks: Sequence[Task]) -> Sequence[Task]:
        for task in tasks:
            if task.transfer:
                raise ValueError(
                    f"task {task.name!r}: expected it without `transfer`, whose rows only teachers "
                    "label, in a job without teachers"
                )
        return tasks


class DistillJob(_Job):
    """Distillation of teachers into one student."""

    teachers: Many[Teacher] = Field(min_length=1, description="Who teaches.")
    student: Student = Field(description="Who learns.")
    distillation: Objective = Field(
        default_factory=lambda: DistillationConfig(), description="The objective."
    )
    labels: LabelConfig = Field(default_factory=lambda: LabelConfig(), description="The store.")

    @model_validator(mode="after")
    def _references(self) -> "DistillJob":
        names = [teacher.name for teacher in self.teachers]
        _unique(names, "teachers: ")
        tasks = [task.name for task in self.tasks]
        for teacher in self.teachers:
            if teacher.task not in tasks:
                raise ValueError(
                    f"teacher {teacher.name!r}: expected a task of this job "
                    f"({', '.join(tasks)}), got {teacher.task!r}"
                )
            others = [
                t for t in self.teachers_of(teacher.task) if t.weight > 0 and t is not teacher
            ]
            if teacher.on_loss == "drop" and not others:
                raise ValueError(
                    f"teacher {teacher.name!r}: on_loss: drop needs another teacher of task "
                    f"{teacher.task!r} with a weight above 0 to go on with, got none"
                )
        for task in tasks:
            if not any(t.task == task and t.weight > 0 for t in self.teachers):
                raise ValueError(
                    f"task {task!r}: expected a teacher with a weight above 0, got none"
                )
        source = self.student.layers_from[0] if self.student.layers_from else None
        models = list(self.hosts())
        if source is not None and source not in models and "/" not in source:
            raise ValueError(
                f"student.layers_from: expected a teacher of this job with a model "
                f"({', '.join(models) or 'it has none'}) or the path of a model, got {source!r}"
            )
        return self

    def hosts(self) -> dict[str, Teacher]:
        """Return the teachers that are models, by name, in the job's order."""
        return {teacher.name: teacher for teacher in self.teachers if teacher.model is not None}

    def objective_of(self, task: str) -> DistillationConfig:
        """Return the objective of a task: the job's, with what the task changes of it."""
        (changes,) = (each.distillation for each in self.tasks if each.name == task)
        if changes is None:
            return self.distillation
        return self.distillation.model_copy(
            update={name: getattr(changes, name) for name in changes.model_fields_set}
        )

    def teachers_of(self, task: str) -> tuple[Teacher, ...]:
        """Return the teachers of a task, in the job's order."""
        return tuple(teacher for teacher in self.teachers if teacher.task == task)


def _unique(names: list[str], what: str = "") -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{what}expected different names, got {', '.join(twice)} twice")
