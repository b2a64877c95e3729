"""`train`, its loop, checkpoints and log, for the distillers and for `BasicTrainer`.

train ──► initialize_training ──► [train_on_batch ──► backward ──► step] … ──► save_and_callback
"""

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from raybrew.errors import ConfigError
from raybrew.textbrewer.configurations import TrainingConfig
from raybrew.textbrewer.distiller_utils import (
    Adaptor,
    auto_forward,
    bare,
    move_to_device,
    no_op,
    read_results,
)
from raybrew.textbrewer.feed import Feed, Stream, TrainingSchedule
from raybrew.textbrewer.label_cache import model_fingerprint
from raybrew.textbrewer.resumption import Resumption
from raybrew.training.optimization import Amp
from raybrew.training.progress import Bars
from raybrew.training.world import World

logger = logging.getLogger(__name__)

Callback = Callable[..., Any]
Postprocessor = Callable[[Any], Any]

_SAME_TO_RESUME = (
    *("gradient_accumulation_steps", "fp16", "bf16", "fp16_opt_level"),
    *("ckpt_frequency", "ckpt_epoch_frequency", "ckpt_steps"),
)


class Trainer(ABC):
    """Trains one model of the caller's.

    Args:
        train_config: how, and where to.
        model_S: what trains; on the script's device.

    Raises:
        ConfigError: a device that isn't there.
    """

    print_freq = 20
    """Lines of progress in an epoch."""
    _schedule: TrainingSchedule

    def __init__(self, train_config: TrainingConfig, model_S: nn.Module):
        self.t_config, self.model_S = train_config, model_S
        self.device, self.local_rank = _device(train_config), train_config.local_rank
        distributed = self.local_rank != -1
        self.rank = dist.get_rank() if distributed else 0
        size = dist.get_world_size() if distributed else 1
        self._world = World(self.rank, size, self.device)
        self._precision = _precision(train_config, self.device)
        self._amp = Amp(self._precision, self.device)
        self._scaler = self._amp.scaler
        self.tb_writer = _writer(train_config.log_dir, self.rank)
        self._modes: list[tuple[nn.Module, bool]] = []
        self._resumption: Resumption | None = None

    @abstractmethod
    def train_on_batch(self, batch: Any, args: Mapping[str, Any]) -> Any:
        """Return the loss of a batch, with a graph; perhaps with its terms without weights."""

    def __enter__(self) -> Self:
        self._modes = [(model, model.training) for model in [*self._teachers(), self.model_S]]
        for model in self._teachers():
            model.eval()
        self.model_S.train()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for model, training in self._modes:
            model.train(training)

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
        batch_postprocessor: Postprocessor | None = None,
        **args: Any,
    ) -> None:
        """Train, or go on with a training that was stopped.

        Args:
            optimizer: over the parameters of what trains; projections are added to it.
            dataloader: batches, as the models and adaptors take them.
            num_epochs: passes over the loader.
            scheduler_class: makes the schedule of the learning rate, with the optimizer.
            scheduler_args: its other arguments.
            scheduler: a schedule that is there already.
            max_grad_norm: norm that the model's gradients are clipped to; none unless above 0.
            num_steps: optimizer steps, in the place of epochs.
            callback: called at each checkpoint as callback(model=…, step=…).
            batch_postprocessor: what every batch goes through.
            args: of every forward pass of every model.

        Raises:
            ConfigError: what doesn't fit together.
            TeacherError: an answer of another shape than the student's.
            CheckpointError: a checkpoint that can't be written, or read back.
        """
        self._schedule = TrainingSchedule(self.t_config, dataloader, num_epochs, num_steps)
        feed = self._feed(dataloader, batch_postprocessor, epochs=num_steps is None)
        optimizer, scheduler, _ = self.initialize_training(
            optimizer, scheduler_class, scheduler_args, scheduler
        )
        self._resumption = None
        if self.t_config.resume:
            self._resumption = self._resume_with(optimizer, scheduler, feed, max_grad_norm)
            values = self._resumption.restore()
            if values is not None:
                self._schedule.done = values["done"]
                self._restore_values(values)
                self._call_back(self._schedule.step, callback)
        try:
            self._loop(optimizer, scheduler, feed, max_grad_norm, callback, args)
        finally:
            self._ended()
        if self._resumption is not None:
            self._resumption.done()

    def initialize_training(
        self,
        optimizer: Optimizer,
        scheduler_class: Any,
        scheduler_args: Mapping[str, Any] | None,
        scheduler: Any,
    ) -> tuple[Optimizer, Any, bool]:
        """Complete the optimizer, make the schedule, wrap what learns.

        Returns:
            The optimizer, the schedule of the learning rate, and whether no progress is shown.
        """
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for module, options in self._projections():
            parameters = [p for p in module.parameters() if id(p) not in known]
            if parameters:
                optimizer.add_param_group({"params": parameters, **options})
        if scheduler_class is not None:
            scheduler = scheduler_class(optimizer=optimizer, **(scheduler_args or {}))
        self._wrap_models()
        return optimizer, scheduler, self.rank != 0

    def write_loss(
        self, total_loss: Tensor, writer_step: int, losses_dict: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write a batch's losses to TensorBoard."""
        if not isinstance(self.tb_writer, no_op):
            self.tb_writer.add_scalar("scalar/total_loss", float(total_loss), writer_step)
            for name, loss in (losses_dict or {}).items():
                self.tb_writer.add_scalar(f"scalar/{name}", float(loss), writer_step)

    def save_and_callback(
        self, global_step: int, step: int, epoch: int, callback: Callback | None
    ) -> None:
        """Write the student's weights as `gs<step>.pkl`, and call the callback."""
        logger.info("Saving at step %d, epoch %d", global_step, epoch + 1)
        values = self._values()
        if self.rank == 0:
            path = Path(self.t_config.output_dir) / f"gs{global_step}.pkl"
            torch.save(bare(self.model_S).state_dict(), path)
        # Before the callback: a training that it ends goes on with calling it.
        if self._resumption is not None:
            self._resumption.save(global_step, {"done": self._schedule.done, **values})
        if self._world.size > 1:
            dist.barrier()
        self._call_back(global_step, callback)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass in the config's precision."""
        return self._amp.autocast()

    def _teachers(self) -> Sequence[nn.Module]:
        return ()

    def _projections(self) -> Sequence[tuple[nn.Module, Mapping[str, Any]]]:
        """Return what learns beside the model, with the options of each optimizer group."""
        return ()

    def _keeps_batches(self) -> bool:
        """Whether the batches of one pass over the loader serve all epochs."""
        return False

    def _wrap_models(self) -> None:
        self.model_S = self._wrapped(self.model_S)

    def _values(self) -> Mapping[str, Any]:
        """Return, at a checkpoint, plain values that a training that goes on needs as well."""
        return {}

    def _settings(self) -> Mapping[str, str]:
        """Return what else a training has to have in common with one that it goes on with."""
        return {}

    def _after_step(self, progress: float) -> None:  # noqa: B027  most have nothing to do
        """Do what follows a step, at a share of the training that is done."""

    def _ended(self) -> None:
        """Do what follows the last batch, or what ended the training."""
        flush = getattr(self.tb_writer, "flush", None)
        if flush is not None:
            flush()

    def _feed(self, loader: Any, postprocess: Any, *, epochs: bool) -> Feed:
        stream = Stream(loader, postprocess)
        if epochs:
            stream.keeps = self._keeps_batches()
            begin = getattr(getattr(loader, "sampler", None), "set_epoch", None)
            if begin is not None and self.local_rank != -1:
                stream.begin_pass = begin
        return Feed({"": stream})

    def _loop(
        self,
        optimizer: Optimizer,
        scheduler: Any,
        feed: Feed,
        max_grad_norm: float,
        callback: Callback | None,
        args: Mapping[str, Any],
    ) -> None:
        schedule = self._schedule
        optimizer.zero_grad()
        with Bars(enabled=self.rank == 0 and sys.stderr.isatty()) as bars:
            bars.start("train", schedule.num_steps, "steps")
            while schedule.done < schedule.num_epochs * schedule.per_epoch:
                epoch, place = divmod(schedule.done, schedule.per_epoch)
                self._batch(feed, args)
                if (place + 1) % schedule.accumulation == 0:
                    self._step(optimizer, scheduler, max_grad_norm)
                    bars.move_to("train", schedule.step)
                    if schedule.step % max(1, schedule.steps_per_epoch // self.print_freq) == 0:
                        logger.info("Step %d of %d", schedule.step, schedule.num_steps)
                    if schedule.step in schedule.checkpoints:
                        self.save_and_callback(schedule.step, place, epoch, callback)
                if place + 1 == schedule.per_epoch:
                    # Gradients of half a step end with the epoch.
                    optimizer.zero_grad()
        logger.info("Training finished after %d steps", schedule.step)

    def _resume_with(
        self, optimizer: Optimizer, scheduler: Any, feed: Feed, max_grad_norm: float
    ) -> Resumption:
        groups = [
            {key: each for key, each in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        schedule, teachers = self._schedule, enumerate(self._teachers())
        settings = {
            "trainer": type(self).__name__,
            "processes": str(self._world.size),
            "timetable": f"{schedule.num_epochs} epochs of {schedule.per_epoch} batches",
            "optimizer": f"{type(optimizer).__name__} {groups}",
            "scheduler": type(scheduler).__name__,
            "max_grad_norm": str(max_grad_norm),
            "student": model_fingerprint(bare(self.model_S)),
            **{f"teacher {number}": model_fingerprint(bare(model)) for number, model in teachers},
            **{key: str(getattr(self.t_config, key)) for key in _SAME_TO_RESUME},
            **self._settings(),
        }
        parts = {
            "model": bare(self.model_S),
            "projections": nn.ModuleList(bare(each) for each, _ in self._projections()),
            "optimizer": optimizer,
            "scheduler": scheduler,
            "scaler": self._scaler,
        }
        return Resumption(Path(self.t_config.output_dir), settings, parts, feed, self._world)

    def _restore_values(self, values: Mapping[str, Any]) -> None:  # noqa: B027  as above
        """Bring back what `_values` returned."""

    def _batch(self, feed: Feed, args: Mapping[str, Any]) -> None:
        task, batch = feed.next()
        with self.autocast():
            result = self.train_on_batch((batch, task) if task else batch, args)
        loss, parts = result if isinstance(result, tuple) else (result, {})
        detached = {name: torch.as_tensor(part).detach() for name, part in parts.items()}
        self.write_loss(loss.detach(), self._schedule.done, detached)
        self._scaler.scale(loss / self._schedule.accumulation).backward()
        self._schedule.done += 1

    def _step(self, optimizer: Optimizer, scheduler: Any, max_grad_norm: float) -> None:
        if max_grad_norm > 0:
            self._scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.model_S.parameters(), max_grad_norm)
        self._scaler.step(optimizer)
        self._scaler.update()
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad()
        self._after_step(self._schedule.step / self._schedule.num_steps)

    def _call_back(self, global_step: int, callback: Callback | None) -> None:
        if callback is not None:
            callback(model=self.model_S, step=global_step)
            self.model_S.train()

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


class BasicTrainer(Trainer):
    """Trains a model on the losses that its adaptor gives, such as a teacher.

    Args:
        train_config: how, and where to.
        model: what trains.
        adaptor: (batch, outputs) → {"losses": …}.
    """

    def __init__(self, train_config: TrainingConfig, model: nn.Module, adaptor: Adaptor):
        super().__init__(train_config, model)
        self.adaptor = adaptor

    @property
    def model(self) -> nn.Module:
        """What trains."""
        return self.model_S

    @model.setter
    def model(self, model: nn.Module) -> None:
        self.model_S = model

    def train_on_batch(self, batch: Any, args: Mapping[str, Any]) -> Tensor:
        """Return the sum of the losses that the adaptor gives.

        Raises:
            ConfigError: it gives none.
        """
        moved = move_to_device(batch, self.device)
        results = read_results(self.adaptor, moved, auto_forward(self.model_S, moved, args))
        if "losses" not in results:
            raise ConfigError(
                "BasicTrainer: expected an adaptor that gives `losses`, got none: there is nothing "
                "to learn from"
            )
        return sum_of_means(results["losses"])


def sum_of_means(losses: Sequence[Tensor]) -> Tensor:
    """Return the sum of an adaptor's losses, each a mean over its devices."""
    return torch.stack([loss.mean() for loss in losses]).sum()


def _device(config: TrainingConfig) -> torch.device:
    device = torch.device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"TrainingConfig: device: expected one that is there, got {config.device!r}, and "
            "PyTorch finds no GPU; pass device='cpu'"
        )
    return device


def _precision(config: TrainingConfig, device: torch.device) -> str:
    """Return fp32, bf16 or fp16, which is float16 where the device computes in it."""
    if config.bf16:
        return "bf16"
    if not config.fp16 or config.fp16_opt_level == "O0":
        return "fp32"
    if config.fp16_opt_level != "O1":
        logger.warning(
            "fp16_opt_level %s: weights stay in full precision and autocast chooses for each "
            "operation, as O1 does",
            config.fp16_opt_level,
        )
    if device.type == "cuda":
        return "fp16"
    logger.warning("fp16: no float16 on %s, computing in bfloat16 instead", device.type)
    return "bf16"


def _writer(log_dir: Any, rank: int) -> Any:
    if log_dir is None or rank != 0:
        return no_op()
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "log_dir: expected the package tensorboard, got none installed; pip install "
            "'raybrew[tensorboard]', or set log_dir to None"
        ) from error
    return SummaryWriter(log_dir=str(Path(log_dir)))
