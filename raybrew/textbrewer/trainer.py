"""TextBrewer's `BasicTrainer`: supervised training, such as a teacher's."""

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from raybrew.errors import ConfigError
from raybrew.textbrewer.batch import move_to_device
from raybrew.textbrewer.batch_loss import hard_loss
from raybrew.textbrewer.reading import Adaptor
from raybrew.textbrewer.student import say
from raybrew.textbrewer.training import Callback, Training
from raybrew.textbrewer.training_config import TrainingConfig


class BasicTrainer(Training):
    """Trains a model on the losses that its adaptor gives.

    Args:
        train_config: how, and where to.
        model: what trains.
        adaptor: (batch, outputs) → {"losses": …}.
    """

    def __init__(self, train_config: TrainingConfig, model: nn.Module, adaptor: Adaptor):
        super().__init__(train_config, model)
        self.adaptor = adaptor
        self._was_training = model.training

    @property
    def model(self) -> nn.Module:
        """What trains."""
        return self.model_S

    def __enter__(self) -> "BasicTrainer":
        self._was_training = self.model_S.training
        self.model_S.train()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.model_S.train(self._was_training)

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
        """Train; see `BasicDistiller.train`."""
        scheduler = self._scheduled(optimizer, scheduler_class, scheduler_args, scheduler)
        self.model_S = self._wrapped(self.model_S)
        timetable = self._timetable(dataloader, num_epochs, num_steps)
        feed = self._one_feed(dataloader, batch_postprocessor, epochs=num_steps is None)
        self._train(optimizer, feed, timetable, scheduler, max_grad_norm, callback, args)

    def train_on_batch(
        self, batch: Any, args: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the losses that the adaptor gives.

        Raises:
            ConfigError: it gives none.
        """
        moved = move_to_device(batch, self.device)
        said = say(self.model_S, self.adaptor, moved, args, self.precision.autocast)
        if not said.view.losses:
            raise ConfigError(
                "BasicTrainer: expected an adaptor that gives `losses`, got none: there is nothing "
                "to learn from"
            )
        return hard_loss(said.view), {}
