"""One task of a distiller: who teaches it, what is compared, and the loss of its batches.

batch ──► student ──► Question ──► its teachers, live or kept ──► Answers ──► BatchLoss
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raybrew.errors import ConfigError
from raybrew.matches.spec import MatchSpec
from raybrew.objective import TrainProgress
from raybrew.textbrewer.batch import move_to_device, sides_of
from raybrew.textbrewer.batch_loss import BatchLoss, Losses
from raybrew.textbrewer.kept import KeptTeacher
from raybrew.textbrewer.reading import Adaptor
from raybrew.textbrewer.student import Said, question_of, say
from raybrew.textbrewer.teacher import Teacher


@dataclass(frozen=True)
class TaskMatch:
    """A match of a task.

    Args:
        spec: as the config has it.
        teacher: name of whose layers it takes.
        projection: of the student's features; None for none.
    """

    spec: MatchSpec
    teacher: str
    projection: nn.Module | None


@dataclass(frozen=True)
class Task:
    """A task as it is learnt.

    Args:
        adaptor: the student's, for this task.
        teachers: by name.
        loss: of its batches.
        matches: of this task.
    """

    adaptor: Adaptor
    teachers: Mapping[str, Teacher | KeptTeacher]
    loss: BatchLoss
    matches: Sequence[TaskMatch]

    def losses(
        self,
        model: nn.Module,
        batch: Any,
        device: torch.device,
        arguments: Mapping[str, Any],
        autocast: Callable[[], AbstractContextManager[Any]],
        position: TrainProgress,
    ) -> tuple[Said, Losses]:
        """Have the student and its teachers answer a batch, and compare.

        Args:
            model: the student.
            batch: as the script's loader gives it.
            device: where the student reads it.
            arguments: of every forward pass.
            autocast: precision of the forward passes.
            position: where in the training this is.
        """
        sides = sides_of(batch)
        moved = move_to_device(sides.student, device)
        specs = [match.spec for match in self.matches]
        projections = [match.projection for match in self.matches]
        said = say(model, self.adaptor, moved, arguments, autocast, specs, projections)
        answers = {}
        for number, (name, teacher) in enumerate(self.teachers.items()):
            own = teacher.teacher if isinstance(teacher, KeptTeacher) else teacher
            question = question_of(sides.of_teacher(number, len(self.teachers)), said, own.matches)
            if not self.loss.uses_logits:
                question = question.without_logits()
            answers[name] = teacher.ask(question)
        matches = [(match.spec, match.teacher) for match in self.matches]
        return said, self.loss(said, answers, matches, position)


def matches_of(
    matches: Sequence[MatchSpec], task: str, teachers: Sequence[str], known: Sequence[str]
) -> list[tuple[int, str]]:
    """Return which matches are a task's, by their places, and with which of its teachers.

    Args:
        matches: of the config.
        task: for messages.
        teachers: names of the task's teachers.
        known: names of all teachers of the distiller.

    Raises:
        ConfigError: a match that names no teacher where there are several, or one that isn't
            there.
    """
    found = []
    for place, spec in enumerate(matches):
        if spec.teacher is None and len(teachers) > 1:
            raise ConfigError(
                f'{spec.label}: expected "teacher", the number of one of {len(teachers)} teachers '
                f"({', '.join(teachers)}), got none"
            )
        if spec.teacher is not None and spec.teacher not in known:
            raise ConfigError(
                f"{spec.label}: expected a teacher of {', '.join(known)}, got {spec.teacher!r}"
            )
        teacher = teachers[0] if spec.teacher is None else spec.teacher
        if teacher in teachers:
            found.append((place, teacher))
    return found
