"""A resolved job: what the driver and every worker know of its tasks and teachers, as values.

    config.DistillJob ──runs.resolve──► ResolvedJob ──pickled whole──► each rank: build_training
                                          └─ ResolvedTask ── ResolvedTeacher

Encoded examples stay in files: a task maps them into memory where they are first read.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raybrew.config import (
    DistillationConfig,
    DistillJob,
    LabelConfig,
    Student,
    Task,
    Teacher,
    TrainJob,
)
from raybrew.data.payload import Signal
from raybrew.data.split import EncodedSplit
from raybrew.labels.remote import StoreSpec
from raybrew.matches.plan import TaskMatch
from raybrew.objective.extensions import Extensions, registered
from raybrew.tasks import adaptor_of, task_type_of
from raybrew.tasks.task_type import Adaptor, TaskType, first_classes
from raybrew.teachers.teacher import ResolvedTeacher


@dataclass(frozen=True)
class ResolvedTask:
    """A task whose data and models are known to fit.

    Args:
        config: the job's section, without rows.
        label_names: classes, in the order of the logits.
        num_labels: logits of a row.
        teachers: of the task, in the job's order.
        matches: intermediate matches of the task.
        objective: of the task; None for the hard loss alone.
        adaptor: what the student's outputs mean; that of the task type if None.
        folders: encoded splits, by `train` and `eval`; empty until they are encoded.
    """

    config: Task
    label_names: tuple[str, ...]
    num_labels: int
    teachers: tuple[ResolvedTeacher, ...] = ()
    matches: tuple[TaskMatch, ...] = ()
    objective: DistillationConfig | None = None
    adaptor: Adaptor | str | None = None
    folders: Mapping[str, str] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        # Splits are mapped into memory again where they are read.
        return {name: value for name, value in vars(self).items() if name not in ("train", "eval")}

    @property
    def name(self) -> str:
        """The job's name of the task."""
        return self.config.name

    @property
    def kind(self) -> TaskType:
        """Its task type."""
        return task_type_of(self.config.kind)

    @cached_property
    def train(self) -> EncodedSplit:
        """The encoded training rows.

        Raises:
            DataError: a file is missing or damaged.
        """
        return EncodedSplit.load(Path(self.folders["train"]))

    @cached_property
    def eval(self) -> EncodedSplit | None:
        """The encoded evaluation rows; None without any."""
        folder = self.folders.get("eval")
        return None if folder is None else EncodedSplit.load(Path(folder))

    def split(self, side: str) -> EncodedSplit:
        """Return `train` or `eval`, which the task has."""
        split = self.train if side == "train" else self.eval
        assert split is not None, side
        return split

    @property
    def signals(self) -> dict[str, Sequence[Signal]]:
        """By teacher, what is requested of it."""
        return {teacher.name: teacher.signals for teacher in self.teachers}

    @property
    def alignments(self) -> dict[str, np.ndarray]:
        """By teacher that reads tokens of its own, which of them answers for each of ours."""
        known = self.train.alignments
        return {t.name: known[t.view] for t in self.teachers if t.view in known}

    @property
    def padding_counts(self) -> bool:
        """Whether a match's value depends on how far a batch is padded."""
        # Not of the signals: matches of one statistic share one, with the first one's loss.
        return any(match.padding_counts for match in self.matches)

    @property
    def reads(self) -> Adaptor:
        """The adaptor that reads the student's outputs."""
        adaptor = adaptor_of(self.config.kind, self.adaptor)
        return first_classes(adaptor, None if self.kind.has_labels else self.num_labels)


@dataclass(frozen=True)
class ResolvedJob:
    """A checked job; pickled whole to every worker.

    Args:
        config: the job, with absolute paths of models and without rows.
        tasks: in the job's order.
        store: where labels are; empty without teachers.
        extensions: what the user registered in the driver's process.
    """

    config: DistillJob | TrainJob
    tasks: tuple[ResolvedTask, ...]
    store: StoreSpec | str = ""
    extensions: Extensions = field(default_factory=registered)

    @property
    def student(self) -> Student:
        """Where the model that trains comes from."""
        return self.config.model if isinstance(self.config, TrainJob) else self.config.student

    @property
    def labels(self) -> LabelConfig:
        """The label store, of a job with teachers."""
        assert isinstance(self.config, DistillJob), "a job without teachers has no labels"
        return self.config.labels

    @property
    def hosts(self) -> dict[str, Teacher]:
        """Teachers that are models, which the student may start from, by name."""
        return {} if isinstance(self.config, TrainJob) else self.config.hosts()

    @property
    def teachers(self) -> tuple[ResolvedTeacher, ...]:
        """Teachers of all tasks, in the job's order."""
        if isinstance(self.config, TrainJob):
            return ()
        known = {teacher.name: teacher for task in self.tasks for teacher in task.teachers}
        return tuple(known[each.name] for each in self.config.teachers if each.name in known)

    def task_of(self, teacher: ResolvedTeacher) -> ResolvedTask:
        """Return the task that a teacher teaches."""
        return next(task for task in self.tasks if task.name == teacher.config.task)

    def with_teachers(self, teachers: Collection[ResolvedTeacher]) -> "ResolvedJob":
        """Return the job with these teachers in place of its own."""
        tasks = [
            replace(task, teachers=tuple(t for t in teachers if t.config.task == task.name))
            for task in self.tasks
        ]
        return replace(self, tasks=tuple(tasks))

    def encoded(self, folders: Sequence[Mapping[str, str]]) -> "ResolvedJob":
        """Return the job with the folders of each task's encoded splits."""
        pairs = zip(self.tasks, folders, strict=True)
        return replace(self, tasks=tuple(replace(task, folders=each) for task, each in pairs))

    def placed(self, default: Mapping[str, float]) -> "ResolvedJob":
        """Return the job with each teacher's resources; see `ResolvedTeacher.placed`."""
        return self.with_teachers([teacher.placed(default) for teacher in self.teachers])

    def data_counts(self) -> dict[str, dict[str, float]]:
        """Return what each split holds, and what was cut, lost or masked on the way to it."""
        return {
            f"{task.name} {side}": {"examples": float(len(split))}
            | {name: float(count) for name, count in split.counts.items()}
            for task in self.tasks
            for side, split in (("train", task.train), ("eval", task.eval))
            if split is not None
        }
