"""TextBrewer's `MultiTaskDistiller`: a teacher for each task, one student for all of them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from raybrew.errors import ConfigError
from raybrew.objective import TrainProgress
from raybrew.textbrewer.distiller import Distiller, Lesson
from raybrew.textbrewer.feed import Feed, task_probabilities
from raybrew.textbrewer.stream import Stream
from raybrew.textbrewer.timetable import Timetable
from raybrew.textbrewer.training import Callback


class MultiTaskDistiller(Distiller):
    """A teacher for each task; layers can be matched, of one task's teacher or of all of them.

    Args:
        train_config: how, and where to.
        distill_config: what the loss is; a match with `teacher` is of that task alone.
        model_T: teachers by task.
        model_S: the student.
        adaptor_T: the teachers', by task.
        adaptor_S: the student's, by task.
    """

    def _teach(self) -> dict[str, Lesson]:
        given = {"adaptor_T": self.adaptor_T, "adaptor_S": self.adaptor_S}
        for name, each in given.items():
            if set(each) != set(self.model_T):
                raise ConfigError(
                    f"{name}: expected one for each task of model_T ({', '.join(self.model_T)}), "
                    f"got {', '.join(each)}"
                )
        return {
            task: Lesson(self.adaptor_S[task], {task: (model, self.adaptor_T[task])})
            for task, model in self.model_T.items()
        }

    def train(
        self,
        optimizer: Optimizer,
        dataloaders: Mapping[str, Iterable[Any]],
        num_steps: int,
        scheduler_class: Any = None,
        scheduler_args: Mapping[str, Any] | None = None,
        scheduler: Any = None,
        max_grad_norm: float = -1.0,
        tau: float = 1,
        callback: Callback | None = None,
        batch_postprocessors: Mapping[str, Callable[[Any], Any]] | None = None,
        **args: Any,
    ) -> None:
        """Train the student, or go on with a training that was stopped.

        Args:
            optimizer: over the student's parameters; projections are added to it.
            dataloaders: by task.
            num_steps: optimizer steps.
            scheduler_class: makes the schedule of the learning rate, with the optimizer.
            scheduler_args: its other arguments.
            scheduler: a schedule that is there already.
            max_grad_norm: norm that the student's gradients are clipped to; none unless above 0.
            tau: a batch is of a task with probability |loader|^tau; all alike where a loader's
                length isn't known.
            callback: called at each checkpoint as callback(model=…, step=…).
            batch_postprocessors: by task, what its batches go through.
            args: of every forward pass of every model.

        Raises:
            ConfigError: what doesn't fit together.
            TeacherError: an answer of another shape than the student's.
            CheckpointError: a checkpoint that can't be written, or read back.
        """
        if set(dataloaders) != set(self.model_T):
            raise ConfigError(
                f"dataloaders: expected one for each task ({', '.join(self.model_T)}), got "
                f"{', '.join(dataloaders)}"
            )
        scheduler = self._initialized(optimizer, scheduler_class, scheduler_args, scheduler, args)
        feed = Feed(
            {task: Stream(loader) for task, loader in dataloaders.items()},
            batch_postprocessors or {},
            draws=True,
            probabilities=task_probabilities(dataloaders, tau),
        )
        timetable = Timetable.of_steps(self.t_config, num_steps)
        self._train(optimizer, feed, timetable, scheduler, max_grad_norm, callback, args)

    def train_on_batch(
        self, batch: tuple[Any, str], args: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a (batch, task), with a graph, and its terms without weights."""
        given, task = batch
        _, losses = self._compared(task, given, args)
        return losses.total, losses.parts

    def _loss_of(
        self, task: str, batch: Any, position: TrainProgress, args: Mapping[str, Any]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        self._position = position
        return self.train_on_batch((batch, task), args)
