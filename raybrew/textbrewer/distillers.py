"""TextBrewer's distillers of one task: one teacher, one with matches of layers, several."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from raybrew.errors import ConfigError
from raybrew.matches.spec import MatchSpec
from raybrew.textbrewer.custom_match import CustomMatch, Tap
from raybrew.textbrewer.distillation_config import DistillationConfig
from raybrew.textbrewer.distiller import Distiller, Lesson
from raybrew.textbrewer.reading import Adaptor
from raybrew.textbrewer.training import Callback
from raybrew.textbrewer.training_config import TrainingConfig

logger = logging.getLogger(__name__)


class BasicDistiller(Distiller):
    """One teacher, one task, losses on logits and labels.

    Args:
        train_config: how, and where to.
        distill_config: what the loss is.
        model_T: the teacher.
        model_S: the student.
        adaptor_T: the teacher's.
        adaptor_S: the student's.
    """

    def _teach(self) -> dict[str, Lesson]:
        return {"": Lesson(self.adaptor_S, {"0": (self.model_T, self.adaptor_T)})}

    def _own_matches(self) -> list[MatchSpec]:
        if self.d_config.intermediate_matches:
            logger.warning(
                "BasicDistiller compares no layers: its %d intermediate_matches are not used; take "
                "GeneralDistiller",
                len(self.d_config.intermediate_matches),
            )
        return []

    def train(
        self,
        optimizer: Optimizer,
        dataloader: Iterable[Any],
        num_epochs: int | None = None,
        scheduler_class: Any = None,
        scheduler_args: Mapping[str, Any] | None = None,
        scheduler: Any = None,
        max_grad_norm: float = -1.0,
        num_steps: int | None = None,
        callback: Callback | None = None,
        batch_postprocessor: Callable[[Any], Any] | None = None,
        **args: Any,
    ) -> None:
        """Train the student, or go on with a training that was stopped.

        Args:
            optimizer: over the student's parameters; projections are added to it.
            dataloader: batches, as the models and adaptors take them.
            num_epochs: passes over the loader.
            scheduler_class: makes the schedule of the learning rate, with the optimizer.
            scheduler_args: its other arguments.
            scheduler: a schedule that is there already.
            max_grad_norm: norm that the student's gradients are clipped to; none unless above 0.
            num_steps: optimizer steps, in the place of epochs.
            callback: called at each checkpoint as callback(model=…, step=…).
            batch_postprocessor: what every batch goes through.
            args: of every forward pass of every model.

        Raises:
            ConfigError: what doesn't fit together.
            TeacherError: an answer of another shape than the student's.
            CheckpointError: a checkpoint that can't be written, or read back.
        """
        scheduler = self._initialized(optimizer, scheduler_class, scheduler_args, scheduler, args)
        timetable = self._timetable(dataloader, num_epochs, num_steps)
        feed = self._one_feed(dataloader, batch_postprocessor, epochs=num_steps is None)
        self._train(optimizer, feed, timetable, scheduler, max_grad_norm, callback, args)

    def train_on_batch(
        self, batch: Any, args: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, with a graph, and its terms without their weights."""
        _, losses = self._compared("", batch, args)
        return losses.total, losses.parts


class GeneralDistiller(BasicDistiller):
    """One teacher, one task; compares layers as well.

    Args:
        train_config: how, and where to.
        distill_config: what the loss is.
        model_T: the teacher.
        model_S: the student.
        adaptor_T: the teacher's.
        adaptor_S: the student's.
        custom_matches: between any two modules.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: nn.Module,
        model_S: nn.Module,
        adaptor_T: Adaptor,
        adaptor_S: Adaptor,
        custom_matches: Sequence[CustomMatch] | None = None,
    ):
        super().__init__(train_config, distill_config, model_T, model_S, adaptor_T, adaptor_S)
        self._custom = tuple(custom_matches or ())
        self._taps: list[tuple[Tap, Tap]] = []
        for match in self._custom:
            if match.projection is not None:
                match.projection.to(self.device)

    def _own_matches(self) -> list[MatchSpec]:
        return self.d_config.matches()

    def _begun(self) -> None:
        self._taps = [(Tap(each.module_S), Tap(each.module_T)) for each in self._custom]

    def _ended(self) -> None:
        for taps in self._taps:
            for tap in taps:
                tap.close()
        super()._ended()

    def train_on_batch(
        self, batch: Any, args: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, with a graph, and its terms without their weights."""
        said, losses = self._compared("", batch, args)
        total, parts = losses.total, losses.parts
        mask = said.view.inputs_mask
        for number, (match, (own, teachers)) in enumerate(
            zip(self._custom, self._taps, strict=True)
        ):
            value = match.compare(own.take(), teachers.take(), mask, mask)
            parts[f"unweighted_custom_{number}"] = value
            total = total + match.weight * value
        return total, parts

    def _can_keep(self) -> bool:
        if self._custom:
            logger.warning(
                "is_caching_logits: custom matches compare what the teacher's modules return, "
                "which isn't kept: the teacher runs for every batch"
            )
        return not self._custom

    def _groups(self) -> list[dict[str, Any]]:
        projected = [match for match in self._custom if match.projection is not None]
        return super()._groups() + [
            {"params": list(match.projection.parameters()), **match.proj_group}
            for match in projected
            if match.projection is not None
        ]

    def _beside(self) -> nn.Module:
        own = [each for each in self.projs if each is not None]
        own += [each.projection for each in self._custom if each.projection is not None]
        return nn.ModuleList(own)


class MultiTeacherDistiller(BasicDistiller):
    """Several teachers of one task, whose logits are averaged; each may be matched by its layers.

    Args:
        train_config: how, and where to.
        distill_config: what the loss is; a match names its teacher's number as `teacher`.
        model_T: the teachers.
        model_S: the student.
        adaptor_T: of all of them, or one each.
        adaptor_S: the student's.
    """

    def _teach(self) -> dict[str, Lesson]:
        models, adaptors = list(self.model_T), self.adaptor_T
        each = list(adaptors) if isinstance(adaptors, list | tuple) else [adaptors] * len(models)
        if len(each) != len(models):
            raise ConfigError(
                f"adaptor_T: expected one, or one for each of {len(models)} teachers, got "
                f"{len(each)}"
            )
        teachers = {str(number): pair for number, pair in enumerate(zip(models, each, strict=True))}
        return {"": Lesson(self.adaptor_S, teachers)}

    def _own_matches(self) -> list[MatchSpec]:
        return self.d_config.matches()
