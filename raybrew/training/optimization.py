"""Optimizer, learning rate schedule and mixed precision (amp).

And their state as files hold it.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
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

# Autocast of the student, and fp16's loss scale: without it small gradients would be 0.
#
# loss ──× scale──► backward ──► gradients ──÷ scale──► clip ──► step
#                                    └ not finite, though the losses are ──► smaller scale, no step

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What a job's `training.precision` computes in; fp32 is computed as it is."""
FIRST_SCALE = 2.0**16


def loss_scaler(precision: str, device: torch.device) -> GradScaler:
    """Return what scales the losses; with other precisions than fp16 it leaves all as it is."""
    return GradScaler(device.type, init_scale=FIRST_SCALE, enabled=precision == "fp16")


# The optimizer and its learning rate schedule, by the names of torch and transformers.

_OTHER_STEPS = ("LBFGS", "SparseAdam")
"""Optimizers that need more than a dense gradient for a step."""
_OTHER_ARGUMENTS = (
    SchedulerType.REDUCE_ON_PLATEAU,
    SchedulerType.GREEDY,
    SchedulerType.WARMUP_STABLE_DECAY,
    SchedulerType.COSINE_WITH_MIN_LR,
    SchedulerType.COSINE_WARMUP_WITH_MIN_LR,
)
"""Schedules that need more than the length of warm-up and run."""


def check_optimization(config: TrainingConfig) -> None:
    """Refuse an optimizer, an argument of it, or a schedule that doesn't exist.

    Raises:
        ConfigError: names the field and the nearest names.
    """
    optimizer = getattr(torch.optim, config.optimizer, None)
    known = [n for n, c in vars(torch.optim).items() if _is_optimizer(c) and n not in _OTHER_STEPS]
    _known("training.optimizer", config.optimizer, known)
    arguments = list(inspect.signature(optimizer).parameters)[1:]  # type: ignore[arg-type]
    for name in config.optimizer_options:
        _known("training.optimizer_options", name, [a for a in arguments if a != "lr"])
    schedules = [kind.value for kind in SchedulerType if kind not in _OTHER_ARGUMENTS]
    _known("training.lr_scheduler", config.lr_scheduler, schedules)


def optimizer_class(config: TrainingConfig) -> type[Optimizer]:
    """Return the class that the job names, which `check_optimization` has seen."""
    return getattr(torch.optim, config.optimizer)


def build_optimizer(
    model: nn.Module, config: TrainingConfig, groups: Sequence[dict[str, Any]] = ()
) -> Optimizer:
    """Return the optimizer over the parameters that learn.

    Args:
        model: its parameters are the first group.
        config: class, learning rate, options. Fused where torch can, unless an option of the
            job's own says how the update is made.
        groups: further groups with options of their own, such as projections.

    Raises:
        ConfigError: the class refuses its arguments.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    build: Any = optimizer_class(config)
    learnt = [*parameters, *(p for group in groups for p in group["params"])]
    options = dict(config.optimizer_options)
    if not {"fused", "foreach", "differentiable"} & options.keys():
        options |= _fused(optimizer_class(config), learnt)
    try:
        return build([{"params": parameters}, *groups], lr=config.learning_rate, **options)
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


_FUSED = ("SGD", "Adam", "AdamW", "Adagrad")
_FUSED_DEVICES = ("cpu", "cuda")


def _fused(optimizer: type[Optimizer], parameters: Sequence[nn.Parameter]) -> dict[str, bool]:
    """Return the option that makes the update one kernel, where torch has one."""
    there = all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in parameters)
    return {"fused": True} if optimizer.__name__ in _FUSED and there else {}


@dataclass(frozen=True)
class OptimizerSettings:
    """Options of an optimizer's groups, its peak learning rates among them, without its state.

    Args:
        groups: one mapping a group.
    """

    groups: tuple[dict[str, Any], ...]

    @staticmethod
    def of(optimizer: Optimizer) -> "OptimizerSettings":
        """Take the settings of an optimizer that its schedule has seen."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        return OptimizerSettings(tuple(groups))

    def restore(self, optimizer: Optimizer, scheduler: LRScheduler) -> None:
        """Give the settings back to an optimizer that took over a checkpoint's.

        The learning rate stays at the same share of its peak, which is where the schedule is.
        """
        for group, settings in zip(optimizer.param_groups, self.groups, strict=True):
            peak, own_peak = group.get("initial_lr"), settings.get("initial_lr")
            rate = group["lr"]
            group.update(settings)
            group["lr"] = rate * own_peak / peak if peak and own_peak else rate
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
            scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def _is_optimizer(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer


def _known(field: str, got: str, known: Iterable[str]) -> None:
    names = sorted(known)
    if got not in names:
        hint = did_you_mean(got, names)
        raise ConfigError(f"{field}: expected one of {', '.join(names)}, got {got!r}{hint}")


# An optimizer's state in two parts, so that it can be written without code: tensors and values.


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
