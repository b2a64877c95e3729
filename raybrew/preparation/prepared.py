"""What preparing a job leaves behind."""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from raybrew.config import Task, Teacher
from raybrew.data.split import EncodedSplit
from raybrew.labels.payload import Signal
from raybrew.matching.plan import TaskMatch
from raybrew.teachers.teacher import TeacherSpec

__all__ = ["Fitting", "Preparation", "PreparedTask", "PreparedTeacher"]


@dataclass(frozen=True)
class PreparedTask:
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
class PreparedTeacher:
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
    """

    teacher: Teacher
    spec: TeacherSpec | None
    fingerprint: str
    task: int
    view: str
    signals: tuple[Signal, ...]
    order: tuple[int, ...] | None = None
    unnamed: bool = False


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
    teachers: tuple[PreparedTeacher, ...]
    matches: tuple[tuple[TaskMatch, ...], ...]
    num_labels: tuple[int, ...]


@dataclass(frozen=True)
class Preparation:
    """A checked job with its data encoded.

    Args:
        tasks: of the job.
        teachers: of the job.
        matches: of each task.
    """

    tasks: tuple[PreparedTask, ...]
    teachers: tuple[PreparedTeacher, ...] = ()
    matches: tuple[tuple[TaskMatch, ...], ...] = ()

    def replicas(self, *, in_workers: bool) -> list[tuple[str, Mapping[str, float]]]:
        """Return name and resources of each replica that the teachers' pool hosts.

        Args:
            in_workers: whether teachers with `placement: worker` are the student's workers'
                business; else the pool hosts them too.
        """
        return [
            (teacher.teacher.name, teacher.teacher.resources)
            for teacher in self.teachers
            if teacher.spec is not None
            if not in_workers or teacher.teacher.placement == "pool"
            for _ in range(teacher.teacher.replicas)
        ]

    def data_counts(self) -> dict[str, dict[str, float]]:
        """Return what each split holds, and what was cut, lost or masked on the way to it."""
        return {
            f"{task.task.name} {side}": {"examples": float(len(split))}
            | {name: float(count) for name, count in split.counts.items()}
            for task in self.tasks
            for side, split in (("train", task.train), ("eval", task.eval))
            if split is not None
        }
