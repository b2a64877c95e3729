"""TextBrewer's other distillers: with matches of layers, of several teachers, of several tasks."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.optim import Optimizer

from raybrew.errors import ConfigError
from raybrew.textbrewer.configurations import DistillationConfig, TrainingConfig
from raybrew.textbrewer.distiller_basic import BasicDistiller, Teachers, Terms
from raybrew.textbrewer.distiller_train import (  # noqa: F401  scripts find BasicTrainer here
    BasicTrainer,
    Callback,
    Postprocessor,
)
from raybrew.textbrewer.distiller_utils import CustomMatch, Results
from raybrew.textbrewer.feed import Feed, Stream

logger = logging.getLogger(__name__)


class GeneralDistiller(BasicDistiller):
    """One teacher, one task; compares layers as well.

    Args:
        train_config, distill_config, model_T, model_S, adaptor_T, adaptor_S: see `BasicDistiller`.
        custom_matches: between any two modules.
    """

    _compares_layers = True
    _keeps_pass = False

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Any,
        model_S: nn.Module,
        adaptor_T: Any,
        adaptor_S: Any,
        custom_matches: Sequence[CustomMatch] | None = None,
    ):
        super().__init__(train_config, distill_config, model_T, model_S, adaptor_T, adaptor_S)
        self._custom: list[CustomMatch] = []
        for match in custom_matches or ():
            self.add_match(match)
        if self._custom and distill_config.is_caching_logits:
            logger.warning(
                "is_caching_logits: custom matches compare what the teacher's modules return, "
                "which isn't kept: the teacher runs for every batch"
            )

    def add_match(self, match: CustomMatch) -> None:
        """Compare two modules as well."""
        if isinstance(match.proj_func, nn.Module):
            match.proj_func.to(self.device)
        self._custom.append(match)

    def train_on_batch(self, batch: Any, args: Mapping[str, Any]) -> Terms:
        """Return the loss of a batch, with a graph, and its terms without their weights."""
        with ExitStack() as stack:
            outputs = [stack.enter_context(match.outputs()) for match in self._custom]
            results_S, results_T = self._results(batch, args, self._pairs(), self.adaptor_S)
        total, parts = self.compute_loss(results_S, results_T["0"])
        mask = results_S.get("inputs_mask")
        for number, (match, output) in enumerate(zip(self._custom, outputs, strict=True)):
            value = match.compare(output, mask, mask)
            parts[f"unweighted_custom_{number}"] = value
            total = total + match.weight * value
        return total, parts

    def _caches_labels(self) -> bool:
        return super()._caches_labels() and not self._custom

    def _projections(self) -> list[tuple[nn.Module, Mapping[str, Any]]]:
        own = [(match.proj_func, match.proj_group) for match in self._custom]
        return super()._projections() + [
            (module, options) for module, options in own if isinstance(module, nn.Module)
        ]


class MultiTeacherDistiller(BasicDistiller):
    """Several teachers of one task, whose logits are averaged; each may be matched by its layers.

    A match names its teacher's number as `teacher`; there is one adaptor of all, or one each.
    """

    _compares_layers = True
    _shares_teachers = False

    def train_on_batch(self, batch: Any, args: Mapping[str, Any]) -> Terms:
        """Return the loss of a batch, with a graph, and its terms without their weights."""
        results_S, results_T = self._results(batch, args, self._pairs(), self.adaptor_S)
        return self.compute_loss(results_S, list(results_T.values()))

    def compute_loss(self, results_S: Results, results_T: Any) -> Terms:
        """Combine the terms of a batch, from what the adaptors of the student and of each give."""
        numbered = {str(number): each for number, each in enumerate(results_T)}
        return self._combined(results_S, numbered)

    def _pairs(self) -> Teachers:
        models, adaptors = list(self.model_T), self.adaptor_T
        each = list(adaptors) if isinstance(adaptors, list | tuple) else [adaptors] * len(models)
        if len(each) != len(models):
            raise ConfigError(
                f"adaptor_T: expected one, or one for each of {len(models)} teachers, got "
                f"{len(each)}"
            )
        return {str(number): pair for number, pair in enumerate(zip(models, each, strict=True))}


class MultiTaskDistiller(GeneralDistiller):
    """A teacher for each task; layers can be matched, of one task's teacher or of all of them.

    Models of teachers and adaptors are dicts by task; a match with `teacher` is of that task alone.
    """

    _task, _tau = "", 1.0

    def train(  # pyright: ignore[reportIncompatibleMethodOverride]  as TextBrewer has it
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
        batch_postprocessors: Mapping[str, Postprocessor] | None = None,
        **args: Any,
    ) -> None:
        """Train the student, or go on with a training that was stopped; see `Trainer.train`.

        The loaders, and what their batches go through, are by task. A batch is of a task with
        probability |loader|^tau; all are alike where a loader's length isn't known.
        """
        if set(dataloaders) != set(self.model_T):
            raise ConfigError(
                f"dataloaders: expected one for each task ({', '.join(self.model_T)}), got "
                f"{', '.join(dataloaders)}"
            )
        self._tau = tau
        named: dict[str, Any] = {"num_steps": num_steps, "callback": callback, **args}
        named["batch_postprocessor"] = batch_postprocessors
        schedule = (scheduler_class, scheduler_args, scheduler)
        super().train(optimizer, dataloaders, None, *schedule, max_grad_norm, **named)

    def train_on_batch(self, batch: tuple[Any, str], args: Mapping[str, Any]) -> Terms:
        """Return the loss of a (batch, task), with a graph, and its terms without weights."""
        given, self._task = batch
        pairs = {self._task: self._pairs()[self._task]}
        results_S, results_T = self._results(given, args, pairs, self.adaptor_S[self._task])
        return self.compute_loss(results_S=results_S, results_T=results_T[self._task])

    def compute_loss(self, results_S: Results, results_T: Any) -> Terms:
        """Combine the terms of a batch of one task."""
        return self._combined(results_S, {self._task: results_T})

    def _feed(self, loader: Any, postprocess: Any, *, epochs: bool) -> Feed:
        changes = postprocess or {}
        streams = {task: Stream(each, changes.get(task)) for task, each in loader.items()}
        if not all(hasattr(each, "__len__") for each in loader.values()):
            return Feed(streams)
        sizes = [float(len(each)) ** self._tau for each in loader.values()]
        return Feed(streams, [size / sum(sizes) for size in sizes])

    def _pairs(self) -> Teachers:
        for name, each in {"adaptor_T": self.adaptor_T, "adaptor_S": self.adaptor_S}.items():
            if set(each) != set(self.model_T):
                raise ConfigError(
                    f"{name}: expected one for each task of model_T ({', '.join(self.model_T)}), "
                    f"got {', '.join(each)}"
                )
        return {task: (model, self.adaptor_T[task]) for task, model in self.model_T.items()}
