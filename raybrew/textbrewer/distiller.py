"""What TextBrewer's distillers have in common; each says who teaches what.

DistillationConfig ──► losses, matches ──┐
model_T, adaptor_T, model_S, adaptor_S ──┴─► a Task each ──► train_on_batch
"""

import logging
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import nn
from torch.optim import Optimizer

from raybrew.config.paths import is_uri, user_path
from raybrew.labels.contents import write_manifest
from raybrew.labels.store import LabelStore
from raybrew.matches.spec import MatchSpec
from raybrew.textbrewer.batch_loss import BatchLoss, Losses
from raybrew.textbrewer.distillation_config import DistillationConfig
from raybrew.textbrewer.fingerprint import teacher_fingerprint
from raybrew.textbrewer.kept import KeptTeacher
from raybrew.textbrewer.loop import Loop
from raybrew.textbrewer.modes import Modes
from raybrew.textbrewer.reading import Adaptor
from raybrew.textbrewer.student import Said, build_projections, projection_groups
from raybrew.textbrewer.task import Task, TaskMatch, matches_of
from raybrew.textbrewer.teacher import Teacher
from raybrew.textbrewer.training import Callback, Training
from raybrew.textbrewer.training_config import TrainingConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lesson:
    """Who teaches a task.

    Args:
        adaptor: the student's, for this task.
        teachers: by name, the model and its adaptor.
    """

    adaptor: Adaptor
    teachers: Mapping[str, tuple[nn.Module, Adaptor]]


class Distiller(Training):
    """Distils teachers of the caller's into a student of the caller's.

    Args:
        train_config: how, and where to.
        distill_config: what the loss is.
        model_T: the teachers, as the distiller takes them.
        model_S: the student.
        adaptor_T: of the teachers.
        adaptor_S: of the student.

    Raises:
        ConfigError: what can't be, such as a match with a teacher that isn't there.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Any,
        model_S: nn.Module,
        adaptor_T: Any,
        adaptor_S: Any,
    ):
        super().__init__(train_config, model_S)
        self.d_config = distill_config
        self.model_T, self.adaptor_T, self.adaptor_S = model_T, adaptor_T, adaptor_S
        self._matches = self._own_matches()
        self._lessons = self._teach()
        for name in self._lessons:
            self._places(name)
        self.projs = build_projections(self._matches, self.device)
        self._tasks: dict[str, Task] = {}
        self._modes = Modes(())

    @abstractmethod
    def _teach(self) -> dict[str, Lesson]:
        """Return who teaches what, by task."""

    def _own_matches(self) -> list[MatchSpec]:
        return self.d_config.matches()

    @property
    def label_counts(self) -> dict[str, int]:
        """How many answers of teachers were computed, and how many were found in the store."""
        asked = [each for task in self._tasks.values() for each in task.teachers.values()]
        kept = [each for each in asked if isinstance(each, KeptTeacher)]
        live = [each.teacher if isinstance(each, KeptTeacher) else each for each in asked]
        return {
            "computed": sum(each.forwards for each in live),
            "found": sum(each.hits for each in kept),
        }

    def __enter__(self) -> Self:
        teachers = [m for lesson in self._lessons.values() for m, _ in lesson.teachers.values()]
        self._modes = Modes([*teachers, self.model_S])
        for model in teachers:
            model.eval()
        self.model_S.train()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._modes.restore()

    def save_and_callback(
        self, global_step: int, step: int, epoch: int, callback: Callback | None
    ) -> None:
        """Write the labels that are not on disk yet, then a checkpoint; call the callback."""
        self._flush_labels()
        super().save_and_callback(global_step, step, epoch, callback)

    def _initialized(
        self,
        optimizer: Optimizer,
        scheduler_class: Any,
        scheduler_args: Mapping[str, Any] | None,
        scheduler: Any,
        args: Mapping[str, Any],
    ) -> Any:
        """Get everything ready to train; return the schedule of the learning rate."""
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for group in self._groups():
            if group["params"] and id(group["params"][0]) not in own:
                optimizer.add_param_group(group)
        scheduler = self._scheduled(optimizer, scheduler_class, scheduler_args, scheduler)
        # What a teacher's answers are filed under is told from the bare models.
        self._tasks = {name: self._task(name, args) for name in self._lessons}
        self.model_S = self._wrapped(self.model_S)
        return scheduler

    def _groups(self) -> list[dict[str, Any]]:
        return projection_groups(self._matches, self.projs)

    def _beside(self) -> nn.Module:
        return nn.ModuleList([each for each in self.projs if each is not None])

    def _task(self, name: str, args: Mapping[str, Any]) -> Task:
        lesson, places = self._lessons[name], self._places(name)
        matches = [
            TaskMatch(self._matches[place], teacher, self._projection(place))
            for place, teacher in places
        ]
        teachers = {
            teacher: self._teacher(
                teacher, *pair, [each.spec for each in matches if each.teacher == teacher], args
            )
            for teacher, pair in lesson.teachers.items()
        }
        loss = BatchLoss(self.d_config.objective(), list(lesson.teachers))
        return Task(lesson.adaptor, teachers, loss, matches)

    def _projection(self, place: int) -> nn.Module | None:
        projection = self.projs[place]
        if projection is not None and self.local_rank != -1:
            self.projs[place] = projection = self._wrapped(projection)
        return projection

    def _places(self, task: str) -> list[tuple[int, str]]:
        known = [name for lesson in self._lessons.values() for name in lesson.teachers]
        return matches_of(self._matches, task, list(self._lessons[task].teachers), known)

    def _teacher(
        self,
        name: str,
        model: nn.Module,
        adaptor: Adaptor,
        matches: Sequence[MatchSpec],
        args: Mapping[str, Any],
    ) -> Teacher | KeptTeacher:
        parallel = self.t_config.data_parallel and not isinstance(model, nn.DataParallel)
        teacher = Teacher(
            f"teacher {name}",
            nn.DataParallel(model) if parallel else model,
            adaptor,
            self.device,
            matches,
            args,
            self.precision.autocast,
        )
        if not self.d_config.is_caching_logits or not self._can_keep():
            return teacher
        store = LabelStore(self._store())
        fingerprint = teacher_fingerprint(model, adaptor, args, self.precision.name)
        write_manifest(
            store.location,
            fingerprint,
            teacher=name,
            model=f"{type(model).__qualname__} of a script",
        )
        return KeptTeacher(teacher, store, fingerprint)

    def _can_keep(self) -> bool:
        """Whether what teachers are asked for can be kept."""
        return True

    def _store(self) -> str:
        given = self.t_config.label_store
        root = str(Path(self.t_config.output_dir) / "labels" if given is None else given)
        return root if is_uri(root) else os.path.abspath(user_path(root, "label_store"))

    def _compared(self, task: str, batch: Any, args: Mapping[str, Any]) -> tuple[Said, Losses]:
        return self._tasks[task].losses(
            self.model_S, batch, self.device, args, self.precision.autocast, self._position
        )

    def _ended(self) -> None:
        self._flush_labels()
        super()._ended()

    def _flush_labels(self) -> None:
        for task in self._tasks.values():
            for teacher in task.teachers.values():
                if isinstance(teacher, KeptTeacher):
                    teacher.flush()

    def _settings(self, loop: Loop) -> dict[str, str]:
        told = self.d_config.told()
        told.pop("is_caching_logits")  # changes no loss
        return super()._settings(loop) | told
