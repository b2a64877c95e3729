"""A resolved job: what the driver and every worker know of its tasks and teachers, as values."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from raybrew.config import Task, Teacher
from raybrew.data.payload import Signal
from raybrew.data.split import EncodedSplit
from raybrew.matches.plan import TaskMatch
from raybrew.teachers.teacher import TeacherSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResolvedTask:
    """A task whose examples are encoded.

    Args:
        task: the job's section.
        label_names: classes, in the order of the logits.
        train: encoded training split.
        eval: encoded evaluation split.
        folders: where they are saved, by `train` and `eval`.
        num_labels: logits of a row.
    """

    task: Task
    label_names: tuple[str, ...]
    train: EncodedSplit
    eval: EncodedSplit | None
    folders: Mapping[str, str]
    num_labels: int

    def split(self, name: str) -> EncodedSplit:
        """Return `train` or `eval`."""
        split = self.train if name == "train" else self.eval
        assert split is not None, name
        return split


@dataclass(frozen=True)
class ResolvedTeacher:
    """A teacher that is known to fit its task.

    Args:
        teacher: the job's section.
        spec: what hosts it; None if its logits are a column of the data.
        fingerprint: what its labels are filed under.
        task: index of its task.
        view: the encoded view that it reads.
        signals: what is asked of it.
        order: its number of each of the task's classes; None if they are the same.
        unnamed: whether no names say which of its classes is which of the task's.
        resources: Ray resources of each replica, once the cluster is known.
    """

    teacher: Teacher
    spec: TeacherSpec | None
    fingerprint: str
    task: int
    view: str
    signals: tuple[Signal, ...]
    order: tuple[int, ...] | None = None
    unnamed: bool = False
    resources: Mapping[str, float] = field(default_factory=dict)

    def placed(self, default: Mapping[str, float]) -> "ResolvedTeacher":
        """Return it with its resources, or these where the job says nothing of them."""
        if self.spec is None:
            return self
        given = self.teacher.resources
        resources = dict(default if given is None else given)
        if self.teacher.placement == "pool":
            logger.info(
                "teacher %r: each replica has %s%s and computes on the %s",
                self.teacher.name,
                ", ".join(f"{value:g} {name}" for name, value in resources.items()) or "nothing",
                " (the job says nothing of resources)" if given is None else "",
                "GPU" if resources.get("GPU", 0) > 0 else "CPU",
            )
        return replace(self, resources=resources)


@dataclass(frozen=True)
class Fitting:
    """A checked job whose data isn't encoded yet.

    Args:
        tokenizers: of each task, by name of the view.
        teachers: of the job.
        matches: of each task.
        num_labels: of each task, logits of a row.
    """

    tokenizers: tuple[Mapping[str, PreTrainedTokenizerBase], ...]
    teachers: tuple[ResolvedTeacher, ...]
    matches: tuple[tuple[TaskMatch, ...], ...]
    num_labels: tuple[int, ...]


@dataclass(frozen=True)
class ResolvedJob:
    """A checked job with its data encoded.

    Args:
        tasks: of the job.
        teachers: of the job.
        matches: of each task.
    """

    tasks: tuple[ResolvedTask, ...]
    teachers: tuple[ResolvedTeacher, ...] = ()
    matches: tuple[tuple[TaskMatch, ...], ...] = ()

    def placed(self, default: Mapping[str, float]) -> "ResolvedJob":
        """Return it with each teacher's resources; see `ResolvedTeacher.placed`."""
        return replace(self, teachers=tuple(each.placed(default) for each in self.teachers))

    def data_counts(self) -> dict[str, dict[str, float]]:
        """Return what each split holds, and what was cut, lost or masked on the way to it."""
        return {
            f"{task.task.name} {side}": {"examples": float(len(split))}
            | {name: float(count) for name, count in split.counts.items()}
            for task in self.tasks
            for side, split in (("train", task.train), ("eval", task.eval))
            if split is not None
        }
