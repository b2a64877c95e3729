"""What TextBrewer's trainer and distillers have in common: `train`, its checkpoints, its log.

train ──► optimizer groups, schedule, wrappers ──► Loop ──► save_and_callback, write_loss
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from raybrew.errors import ConfigError
from raybrew.objective import TrainProgress
from raybrew.textbrewer.feed import Feed
from raybrew.textbrewer.loop import Loop
from raybrew.textbrewer.precision import Precision
from raybrew.textbrewer.resumption import Resumption
from raybrew.textbrewer.stream import Stream
from raybrew.textbrewer.tensorboard import NoWriter, writer_of
from raybrew.textbrewer.timetable import Timetable
from raybrew.textbrewer.training_config import TrainingConfig
from raybrew.training.world import World

logger = logging.getLogger(__name__)

Callback = Callable[..., Any]


class Training(ABC):
    """Trains one model of the caller's.

    Args:
        train_config: how, and where to.
        model_S: what trains; on the script's device.

    Raises:
        ConfigError: a device that isn't there.
    """

    def __init__(self, train_config: TrainingConfig, model_S: nn.Module):
        self.t_config = train_config
        self.model_S = model_S
        self.device = _device(train_config)
        self.local_rank = train_config.local_rank
        distributed = self.local_rank != -1
        self.rank = dist.get_rank() if distributed else 0
        size = dist.get_world_size() if distributed else 1
        self._world = World(self.rank, size, self.device)
        self.precision = Precision(train_config, self.device)
        self.tb_writer = writer_of(train_config.log_dir, self.rank)
        self._loop: Loop | None = None
        self._resumption: Resumption | None = None
        self._position = TrainProgress()

    @abstractmethod
    def train_on_batch(
        self, batch: Any, args: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, with a graph, and its terms without their weights."""

    def write_loss(
        self, total_loss: Tensor, writer_step: int, losses_dict: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write a batch's losses to TensorBoard."""
        if isinstance(self.tb_writer, NoWriter):
            return
        self.tb_writer.add_scalar("scalar/total_loss", float(total_loss), writer_step)
        for name, loss in (losses_dict or {}).items():
            self.tb_writer.add_scalar(f"scalar/{name}", float(loss.detach()), writer_step)

    def save_and_callback(
        self, global_step: int, step: int, epoch: int, callback: Callback | None
    ) -> None:
        """Write the student's weights as `gs<step>.pkl`, and call the callback."""
        logger.info("Saving at step %d, epoch %d", global_step, epoch + 1)
        if self.rank == 0:
            path = Path(self.t_config.output_dir) / f"gs{global_step}.pkl"
            torch.save(_bare(self.model_S).state_dict(), path)
        # Before the callback: a training that it ends goes on with calling it.
        if self._resumption is not None and self._loop is not None:
            self._resumption.save(self._loop)
        if self._world.size > 1:
            dist.barrier()
        self._call_back(global_step, callback)

    def _call_back(self, global_step: int, callback: Callback | None) -> None:
        if callback is not None:
            callback(model=self.model_S, step=global_step)
            self.model_S.train()

    def _one_feed(
        self, loader: Iterable[Any], postprocess: Callable[[Any], Any] | None, *, epochs: bool
    ) -> Feed:
        sampler = getattr(loader, "sampler", None)
        begin = getattr(sampler, "set_epoch", None) if self.local_rank != -1 and epochs else None
        stream = Stream(loader) if begin is None else Stream(loader, begin)
        return Feed({"": stream}, {} if postprocess is None else {"": postprocess})

    def _timetable(self, loader: Any, num_epochs: int | None, num_steps: int | None) -> Timetable:
        if num_steps is not None:
            return Timetable.of_steps(self.t_config, num_steps)
        if num_epochs is None:
            raise ConfigError("train: expected num_epochs or num_steps, got neither")
        if not hasattr(loader, "__len__"):
            raise ConfigError("train: expected num_steps with a dataloader without a length")
        return Timetable.of_epochs(self.t_config, num_epochs, len(loader))

    def _train(
        self,
        optimizer: Optimizer,
        feed: Feed,
        timetable: Timetable,
        scheduler: Any,
        max_grad_norm: float,
        callback: Callback | None,
        args: Mapping[str, Any],
    ) -> None:
        """Train, or go on with a training that was stopped."""
        loop = Loop(
            timetable=timetable,
            feed=feed,
            optimizer=optimizer,
            scheduler=scheduler,
            precision=self.precision,
            clipped=list(self.model_S.parameters()),
            max_grad_norm=max_grad_norm,
            loss_of=lambda task, batch, position: self._loss_of(task, batch, position, args),
            write_loss=self.write_loss,
            save=lambda step, place, epoch: self.save_and_callback(step, place, epoch, callback),
            shows=self.rank == 0,
        )
        self._loop = loop
        self._resumption = Resumption(
            Path(self.t_config.output_dir),
            self._settings(loop),
            _bare(self.model_S),
            self._beside(),
            self._world,
        )
        if self.t_config.resume and self._resumption.restore(loop):
            self._call_back(loop.step, callback)
        self._begun()
        try:
            loop.run()
        finally:
            self._ended()
        self._resumption.done()

    def _beside(self) -> nn.Module:
        """Return what learns beside the model."""
        return nn.ModuleList()

    def _begun(self) -> None:  # noqa: B027  most have nothing to do
        """Do what is to be done before the first batch."""

    def _ended(self) -> None:
        """Do what is to be done after the last batch, or after what ended the training."""
        self.tb_writer.flush()

    def _loss_of(
        self, task: str, batch: Any, position: TrainProgress, args: Mapping[str, Any]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        self._position = position
        return self.train_on_batch(batch, args)

    def _settings(self, loop: Loop) -> dict[str, str]:
        """Return what a training has to have in common with one that it goes on with."""
        config = self.t_config.told()
        kept = ("gradient_accumulation_steps", "fp16", "bf16", "fp16_opt_level")
        groups = [
            {key: each for key, each in group.items() if key != "params"}
            for group in loop.optimizer.param_groups
        ]
        return {
            "trainer": type(self).__name__,
            "processes": str(self._world.size),
            "timetable": str(loop.timetable),
            "optimizer": f"{type(loop.optimizer).__name__} {groups}",
            "scheduler": type(loop.scheduler).__name__,
            "max_grad_norm": str(loop.max_grad_norm),
            **{key: config[key] for key in kept},
        }

    def _scheduled(
        self, optimizer: Optimizer, scheduler_class: Any, scheduler_args: Any, scheduler: Any
    ) -> Any:
        if scheduler_class is None:
            return scheduler
        return scheduler_class(optimizer=optimizer, **(scheduler_args or {}))

    def _wrapped(self, model: nn.Module) -> nn.Module:
        """Put what learns into the wrapper that the config asks for."""
        if isinstance(model, DistributedDataParallel | nn.DataParallel):
            return model
        if self.local_rank != -1:
            place = self.local_rank if self.device.type == "cuda" else None
            return DistributedDataParallel(
                model,
                device_ids=None if place is None else [place],
                output_device=place,
                find_unused_parameters=True,
            )
        return nn.DataParallel(model) if self.t_config.data_parallel else model


def _bare(model: nn.Module) -> nn.Module:
    wrapped = isinstance(model, DistributedDataParallel | nn.DataParallel)
    return model.module if wrapped else model


def _device(config: TrainingConfig) -> torch.device:
    device = torch.device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"TrainingConfig: device: expected one that is there, got {config.device!r}, and "
            "PyTorch finds no GPU; pass device='cpu'"
        )
    return device
