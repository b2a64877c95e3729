"""Optimizer, learning rate schedule and mixed precision (amp), and their state as files hold it.

    loss ──× scale──► backward ──► gradients ──÷ scale──► clip ──► step
                                       └ not finite, though the losses are ──► smaller scale

fp16 needs the loss scale: without it small gradients would be 0.
"""

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler
from transformers.trainer_utils import SchedulerType

from raybrew.config import TrainingConfig
from raybrew.errors import ConfigError, did_you_mean

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What a job's `training.precision` computes in; fp32 needs no autocast."""
FIRST_SCALE = 2.0**16

_UNSUPPORTED_OPTIMIZERS = ("LBFGS", "SparseAdam")
"""Optimizers that need more than a dense gradient for a step."""
_UNSUPPORTED_SCHEDULES = (
    SchedulerType.REDUCE_ON_PLATEAU,
    SchedulerType.GREEDY,
    SchedulerType.WARMUP_STABLE_DECAY,
    SchedulerType.COSINE_WITH_MIN_LR,
    SchedulerType.COSINE_WARMUP_WITH_MIN_LR,
)
"""Schedules that need more than the length of warm-up and run."""
_FUSED = ("SGD", "Adam", "AdamW", "Adagrad")
_FUSED_DEVICES = ("cpu", "cuda")


class Amp:
    """Automatic mixed precision: autocast of forward passes, and the loss scale of float16.

    Args:
        dtype: what forward passes compute in; None for that of the weights.
        device: where they compute.

    Attributes:
        scaler: scales losses and gradients; with other dtypes than float16 it leaves them alone.
    """

    def __init__(self, dtype: torch.dtype | None, device: torch.device):
        self._dtype, self._device = dtype, device.type
        self.scaler = GradScaler(
            device.type, init_scale=FIRST_SCALE, enabled=dtype is torch.float16
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        return torch.autocast(self._device, self._dtype, enabled=self._dtype is not None)


@dataclass
class Optimization:
    """What makes an update of gradients, and what a checkpoint keeps of it.

    Args:
        optimizer: over the parameters that are trained.
        scheduler: of the learning rate; None where it is constant.
        amp: mixed precision.
        max_grad_norm: the gradient is clipped to this norm; None for no clipping.
    """

    optimizer: Optimizer
    scheduler: LRScheduler | None
    amp: Amp
    max_grad_norm: float | None = None

    @property
    def learning_rate(self) -> float:
        """That of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def clip(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Divide gradients by the loss scale, and clip them.

        Returns:
            The norm of all gradients before they were clipped, a scalar.
        """
        self.amp.scaler.unscale_(self.optimizer)
        if self.max_grad_norm is not None:
            return nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def step(self) -> None:
        """Update the parameters, then the learning rate and the loss scale; clear gradients."""
        self.amp.scaler.step(self.optimizer)
        if self.scheduler is not None:
            self.scheduler.step()
        self._end_step()

    def skip(self) -> None:
        """Leave the parameters as they are, and do all else that `step` does."""
        if self.scheduler is not None:
            with warnings.catch_warnings():
                # PyTorch takes a first step that was skipped for calls in the wrong order.
                warnings.filterwarnings(
                    "ignore", "Detected call of `lr_scheduler.step", UserWarning
                )
                self.scheduler.step()
        self._end_step()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state in two parts that are written without code.

        Returns:
            The optimizer's tensors by "parameter.name", and the rest for JSON.
        """
        tensors, settings = split_state(self.optimizer)
        return tensors, {
            "optimizer": settings,
            "scheduler": None if self.scheduler is None else plain(self.scheduler.state_dict()),
            "scaler": self.amp.scaler.state_dict(),
        }

    def load_state(
        self,
        tensors: Mapping[str, Tensor],
        record: Mapping[str, Any],
        *,
        own_settings: bool = False,
    ) -> None:
        """Restore a state.

        Args:
            tensors: the first part of `state`.
            record: the second part; further keys are ignored.
            own_settings: keep this optimizer's options, its peak learning rates among them, as
                population based training does. The learning rate is then at the same share of its
                peak, which is where the schedule is.
        """
        before = [
            {k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(joined_state(record["optimizer"], tensors))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(record["scheduler"])
        self.amp.scaler.load_state_dict(record["scaler"])
        if own_settings:
            self._restore_settings(before)

    def _restore_settings(self, settings: Sequence[Mapping[str, Any]]) -> None:
        groups = self.optimizer.param_groups
        for group, own in zip(groups, settings, strict=True):
            peak, own_peak = group.get("initial_lr"), own.get("initial_lr")
            rate = group["lr"]
            group.update(own)
            group["lr"] = rate * own_peak / peak if peak and own_peak else rate
        scheduler = self.scheduler
        if scheduler is not None and hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [group["initial_lr"] for group in groups]
            scheduler._last_lr = [group["lr"] for group in groups]

    def _end_step(self) -> None:
        self.amp.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


def build_optimization(
    model: nn.Module,
    config: TrainingConfig,
    num_steps: int,
    device: torch.device,
    groups: Sequence[dict[str, Any]] = (),
) -> Optimization:
    """Return what a job's `training` section asks for; see `build_optimizer` for the arguments."""
    optimizer = build_optimizer(model, config, groups)
    return Optimization(
        optimizer,
        build_scheduler(optimizer, config, num_steps),
        Amp(AMP_DTYPES.get(config.precision), device),
        config.max_grad_norm,
    )


def build_optimizer(
    model: nn.Module, config: TrainingConfig, groups: Sequence[dict[str, Any]] = ()
) -> Optimizer:
    """Return the optimizer over the parameters that are trained.

    Args:
        model: its parameters come first, in as many groups as `parameter_groups` makes of them.
        config: class, learning rate, options. Fused where torch can, unless an option of the
            job's own says how the update is made.
        groups: further groups with options of their own, such as projections.

    Raises:
        ConfigError: the class refuses its arguments, or a pattern is in no parameter's name.
    """
    own = _parameter_groups(model, config)
    build: Any = optimizer_class(config)
    trained = [*parameters, *(p for group in groups for p in group["params"])]
    options = dict(config.optimizer_options)
    if not {"fused", "foreach", "differentiable"} & options.keys():
        options |= _fused(optimizer_class(config), trained)
    try:
        return build([*own, *groups], lr=config.learning_rate, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"training.optimizer_options: torch.optim.{config.optimizer} refused "
            f"{config.optimizer_options}: {error}"
        ) from error


def build_scheduler(optimizer: Optimizer, config: TrainingConfig, num_steps: int) -> LRScheduler:
    """Return the schedule of the learning rate over `num_steps`."""
    return get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=round(config.warmup_ratio * num_steps),
        num_training_steps=num_steps,
    )


def optimizer_class(config: TrainingConfig) -> type[Optimizer]:
    """Return the class that the job names, which `check_optimization` has seen."""
    return getattr(torch.optim, config.optimizer)


def check_optimization(config: TrainingConfig) -> None:
    """Refuse an optimizer, an argument of it, or a schedule that doesn't exist.

    Raises:
        ConfigError: names the field and the nearest names.
    """
    optimizers = [name for name, value in vars(torch.optim).items() if _is_supported(value)]
    _check_known("training.optimizer", config.optimizer, optimizers)
    arguments = list(inspect.signature(optimizer_class(config)).parameters)[1:]
    for name in config.optimizer_options:
        _check_known("training.optimizer_options", name, [a for a in arguments if a != "lr"])
    schedules = [kind.value for kind in SchedulerType if kind not in _UNSUPPORTED_SCHEDULES]
    _check_known("training.lr_scheduler", config.lr_scheduler, schedules)


def split_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of an optimizer by "parameter.name", and the rest for JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            target = tensors if isinstance(value, Tensor) else scalars
            target[f"{index}.{name}"] = value
    return tensors, {"scalars": scalars, "param_groups": state["param_groups"]}


def joined_state(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Put the two parts together as `Optimizer.load_state_dict` takes them."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**record["scalars"], **tensors}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": record["param_groups"]}


def plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schedule's state for JSON.

    Schedules of transformers carry their functions as None; tensors would not be plain.
    """
    return {k: v.item() if isinstance(v, Tensor) else v for k, v in state.items()}


def _fused(optimizer: type[Optimizer], parameters: Sequence[nn.Parameter]) -> dict[str, bool]:
    """Return the option that makes the update one kernel, where torch has one."""
    can = all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in parameters)
    return {"fused": True} if optimizer.__name__ in _FUSED and can else {}


def _is_supported(value: object) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, Optimizer)
        and value is not Optimizer
        and value.__name__ not in _UNSUPPORTED_OPTIMIZERS
    )


def _check_known(field: str, got: str, known: Iterable[str]) -> None:
    names = sorted(known)
    if got not in names:
        expected = f"expected one of {', '.join(names)}, got {got!r}."
        raise ConfigError(f"{field}: {expected}{did_you_mean(got, names)}")
