"""Which parameters of a student are trained: what isn't frozen, or LoRA adapters and heads.

LoRA is low-rank adapters on the student's trunk, by the library peft:

    trunk   W, frozen, + alpha / rank · B A, which are trained      heads   trained whole
    saved   W + alpha / rank · B A: a plain model of transformers, with nothing of peft in it

A run is resumed from A, B and the heads alone: W is rebuilt from the job, the same to the bit.

Reference: LoRA (2106.09685).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from raybrew.config import Lora, Student
from raybrew.errors import CheckpointError, ConfigError, did_you_mean

_ADAPTER = "default"
"""The one adapter's name, which is peft's own where none is given."""


def check_trainable(model: nn.Module, student: Student, what: str) -> None:
    """Check the parameters that a job freezes or adapts on a model without weights.

    Raises:
        ConfigError: the model hasn't got them, or peft isn't installed.
    """
    freeze(model, student.freeze, f"{what}.freeze")
    if student.lora is not None:
        _peft(f"{what}.lora")
        _targets(_trunk(model), student.lora, f"{what}.lora")


def limit_trainable(model: nn.Module, student: Student, what: str) -> None:
    """Freeze and adapt a model as the job says; adapters are drawn from the global generator."""
    freeze(model, student.freeze, f"{what}.freeze")
    if student.lora is not None:
        add_adapters(_trunk(model), student.lora, f"{what}.lora")


def _trunk(model: nn.Module) -> nn.Module:
    return model.base_model if isinstance(model, PreTrainedModel) else model.get_submodule("trunk")


def freeze(model: nn.Module, patterns: Iterable[str], what: str = "freeze") -> int:
    """Freeze the parameters whose names contain one of the patterns.

    Numbers match whole: `layer.1` leaves `layer.10` alone. A mistake changes nothing.

    Returns:
        How many parameter tensors the patterns froze.

    Raises:
        ConfigError: A pattern matches no parameter, or nothing would be left to train.
    """
    # A shared parameter goes by each of its names.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    frozen: set[str] = set()
    for pattern in patterns:
        cut = r"(?<!\d)" if pattern[:1].isdigit() else ""
        whole = re.compile(cut + re.escape(pattern) + (r"(?!\d)" if pattern[-1:].isdigit() else ""))
        matched = {name for name in parameters if whole.search(name)}
        if not matched or not pattern:
            parts = [name.split(".") for name in parameters]
            known = {part for each in parts for part in each}
            known |= {".".join(each[:end]) for each in parts for end in range(2, 6)}
            raise ConfigError(
                f"{what}: expected a part of a parameter's name, got {pattern!r}, which matches "
                f"none{did_you_mean(pattern, known)}"
            )
        frozen |= matched
    if frozen and all(name in frozen or not p.requires_grad for name, p in parameters.items()):
        raise ConfigError(f"{what}: expected parameters left to train, got all of them frozen")
    for name in frozen:
        parameters[name].requires_grad_(False)
    return len(frozen)


def add_adapters(trunk: nn.Module, lora: Lora, what: str) -> None:
    """Freeze a trunk and give it adapters, in place; A is drawn from the global generator.

    Args:
        trunk: of the student; what lies around it is trained as before.
        lora: the job's section.
        what: name of the section, for messages.

    Raises:
        ConfigError: no such linear layer, or peft isn't installed.
    """
    peft, targets = _peft(what), _targets(trunk, lora, what)
    conv1d = isinstance(trunk.get_submodule(targets[0]), Conv1D)
    trunk.requires_grad_(False)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        fan_in_fan_out=conv1d,
    )
    peft.inject_adapter_in_model(config, trunk, adapter_name=_ADAPTER)


def _peft(what: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"{what}: expected the library peft, which makes adapters, got none installed: "
            "pip install 'raybrew[peft]'"
        ) from error
    return peft


def _targets(trunk: nn.Module, lora: Lora, what: str) -> list[str]:
    """Return the names of the linear layers that get adapters."""
    linear = [n for n, m in trunk.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    if lora.target_modules is None:
        return linear
    found: set[str] = set()
    for target in lora.target_modules:
        matched = {name for name in linear if f".{name}".endswith(f".{target}")}
        if not matched:
            ends = {name.split(".")[-1] for name in linear}
            hint = (
                did_you_mean(target, {*ends, *linear}) or f"; they end in {', '.join(sorted(ends))}"
            )
            raise ConfigError(
                f"{what}.target_modules: expected names of linear layers of the student's "
                f"{type(trunk).__name__}, or how these end, got {target!r}{hint}"
            )
        found |= matched
    return [name for name in linear if name in found]


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's state with its adapters added to the weights, under the plain names.

    Returns:
        The state itself where there are no adapters.
    """
    layers = _adapted(model)
    if not layers:
        return model.state_dict()
    merged: dict[int, Tensor] = {}  # a shared trunk goes by several names
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        owner, base, last = name.rpartition(".base_layer.")
        if name.partition(".lora_")[0] in layers:
            continue
        if not base:
            state[name] = tensor
            continue
        layer = layers[owner]
        if last == "weight" and id(layer) not in merged:
            merged[id(layer)] = tensor + layer.get_delta_weight(_ADAPTER).detach()
        state[f"{owner}.{last}"] = merged[id(layer)] if last == "weight" else tensor
    return state


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what a run with adapters resumes from besides the job; nothing without adapters."""
    if not _adapted(model):
        return {}
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


@torch.no_grad()
def load_trainable_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Bring a model back to its `trainable_state`.

    Raises:
        CheckpointError: the state of another model, or of other adapters.
    """
    own = trainable_state(model)
    shapes = {name: value.shape for name, value in own.items()}
    if shapes != {name: value.shape for name, value in state.items()}:
        raise CheckpointError(
            f"expected the adapters and heads of this job ({len(shapes)} tensors), got "
            f"{len(state)} tensors of other names or sizes; resume with the lora section that the "
            "run began with"
        )
    for name, value in own.items():
        value.copy_(state[name])


def _adapted(model: nn.Module) -> dict[str, Any]:
    # By their attributes: a process without adapters need not import peft.
    modules = model.named_modules(remove_duplicate=False)
    return {n: m for n, m in modules if hasattr(m, "base_layer") and hasattr(m, "lora_A")}
