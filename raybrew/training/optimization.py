"""Optimizer, learning rate schedule and mixed precision (amp), and their state as files hold it.

    loss ──× scale──► backward ──► gradients ──÷ scale──► clip ──► step
                                       └ not finite, though the losses are ──► smaller scale

fp16 needs the loss scale: without it small gradients would be 0.
"""

import inspect
import re
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

_AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
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
_NUM_SHOWN = 5
_FUSED = ("SGD", "Adam", "AdamW", "Adagrad")
_FUSED_DEVICES = ("cpu", "cuda")


class Amp:
    """Automatic mixed precision: autocast of forward passes, and the loss scale of float16.

    Args:
        precision: bf16, fp16, or fp32, which leaves everything as it is.
        device: where forward passes compute.

    Attributes:
        scaler: scales losses and gradients; only with fp16.
    """

    def __init__(self, precision: str, device: torch.device):
        self._dtype, self._device = _AMP_DTYPES.get(precision), device.type
        self.scaler = GradScaler(device.type, init_scale=FIRST_SCALE, enabled=precision == "fp16")

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
        state = self.optimizer.state_dict()
        values = {
            f"{index}.{name}": value
            for index, each in state["state"].items()
            for name, value in each.items()
        }
        tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
        scalars = {key: value for key, value in values.items() if key not in tensors}
        schedule = {} if self.scheduler is None else self.scheduler.state_dict()
        return tensors, {
            "optimizer": {"scalars": scalars, "param_groups": state["param_groups"]},
            "scheduler": {
                # A schedule may hold a tensor as its learning rate.
                name: value.item() if isinstance(value, Tensor) else value
                for name, value in schedule.items()
            },
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
        saved = record["optimizer"]
        state: dict[int, dict[str, Any]] = {}
        for key, value in {**saved["scalars"], **tensors}.items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
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
        Amp(config.precision, device),
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
    groups = [*_parameter_groups(model, config), *groups]
    build: Any = optimizer_class(config)
    trained = [parameter for group in groups for parameter in group["params"]]
    options = dict(config.optimizer_options)
    if not {"fused", "foreach", "differentiable"} & options.keys():
        options |= _fused(optimizer_class(config), trained)
    assert config.learning_rate is not None, "chosen when the job was resolved"
    try:
        return build(groups, lr=config.learning_rate, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"training.optimizer_options: torch.optim.{config.optimizer} refused "
            f"{config.optimizer_options}: {error}"
        ) from error


def _parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """Return the parameters that are trained, together where their options are the same."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    options: dict[str, dict[str, Any]] = {name: {} for name in trained}
    for number, group in enumerate(config.parameter_groups):
        given = dict(group.options)
        if group.learning_rate is not None:
            given["lr"] = group.learning_rate
        for pattern in group.parameters:
            found = [name for name in trained if re.search(pattern, name)]
            if not found:
                raise ConfigError(
                    f"training.parameter_groups[{number}].parameters: expected a pattern that is "
                    f"in the name of a parameter that is trained, got {pattern!r}; names are "
                    f"{', '.join(list(trained)[:_NUM_SHOWN])}, …"
                )
            for name in found:
                options[name] |= given
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in trained.items():
        group = groups.setdefault(repr(sorted(options[name].items())), {"params": []})
        group["params"].append(parameter)
        group |= options[name]
    return list(groups.values()) or [{"params": []}]


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
    parameters = list(inspect.signature(optimizer_class(config)).parameters)
    arguments = [name for name in parameters[1:] if name != "lr"]
    for name in config.optimizer_options:
        _check_known("training.optimizer_options", name, arguments)
    for number, group in enumerate(config.parameter_groups):
        for name in group.options:
            _check_known(f"training.parameter_groups[{number}].options", name, arguments)
    schedules = [kind.value for kind in SchedulerType if kind not in _UNSUPPORTED_SCHEDULES]
    _check_known("training.lr_scheduler", config.lr_scheduler, schedules)


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
        expected = f"expected one of {', '.join(names)}, got {got!r}"
        raise ConfigError(f"{field}: {expected}{did_you_mean(got, names) or '.'}")
