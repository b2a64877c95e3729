"""Layers of a teacher as the first layers of a student.

    teacher   embeddings  layer 0  layer 1  layer 2  layer 3  layer 4   pooler  head
                  │          │                 │                 │         │      │ (sizes match)
    student   embeddings  layer 0           layer 1           layer 2   pooler  head

The stack of layers is found by its length, so that any model that keeps its layers in one module
list will do: BERT, RoBERTa, DistilBERT, Electra, GPT-style decoders.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from raybrew.errors import ConfigError
from raybrew.models.pretrained import ModelSource, describe_names, load_model, random_model
from raybrew.models.student_configs import Builder, own_key, resized

_log = logging.getLogger(__name__)


def layer_stack(model: PreTrainedModel, what: str = "model") -> str:
    """Return the name of the module list that holds the model's layers.

    Raises:
        ConfigError: No single list has as many entries as the configuration has layers.
    """
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    stacks: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in stacks)
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and not inside:
            stacks.append(name)
    if len(stacks) != 1:
        raise ConfigError(
            f"{what}: expected a model with one stack of layers, got {model.config.model_type!r}, "
            f"which has {', '.join(stacks) or 'none that holds its layers one by one'}"
        )
    return stacks[0]


def layers_config(
    source: ModelSource,
    own: PreTrainedConfig | None,
    layers: Sequence[int],
    what: str,
    build: Builder,
) -> PreTrainedConfig:
    """Return the student's configuration: its own, or the teacher's with the chosen layers.

    Raises:
        ConfigError: The teacher lacks a layer, or `own` has another number of layers.
    """
    config = source.config()
    num_layers = getattr(config, "num_hidden_layers", 0)
    for layer in layers:
        if not 0 <= layer < num_layers:
            raise ConfigError(
                f"{what}.layers_from: expected layers of teacher {source.name!r}, which has 0 to "
                f"{num_layers - 1}, got {layer}"
            )
    if own is None:
        number = {own_key(config, "num_hidden_layers"): len(layers)}
        return resized(config, number, f"{what}.layers_from", build, layers)
    if getattr(own, "num_hidden_layers", 0) != len(layers):
        raise ConfigError(
            f"{what}.layers_from: expected one layer for each of those of {what}.model, which has "
            f"{getattr(own, 'num_hidden_layers', 'none')}, got {len(layers)}"
        )
    return own


def weight_origins(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    layers: Sequence[int],
    source: ModelSource,
    what: str,
) -> dict[str, str]:
    """Return for each weight of the student the name of the teacher's that it starts from.

    Weights of the head in another size are left out: they stay random.

    Raises:
        ConfigError: A weight of the body has no counterpart of its size.
    """
    to, taken_from = layer_stack(student, what), layer_stack(teacher, source.field)
    shapes = {name: tuple(tensor.shape) for name, tensor in teacher.state_dict().items()}
    origins: dict[str, str] = {}
    for name, tensor in student.state_dict().items():
        origin = name
        if name.startswith(f"{to}."):
            index, _, rest = name.removeprefix(f"{to}.").partition(".")
            origin = f"{taken_from}.{layers[int(index)]}.{rest}"
        if shapes.get(origin) == tuple(tensor.shape):
            origins[name] = origin
        elif name.startswith(f"{student.base_model_prefix}."):
            raise ConfigError(
                f"{what}.layers_from: expected {name} of shape {tuple(tensor.shape)} in teacher "
                f"{source.name!r}, got " + (f"{shapes[origin]}" if origin in shapes else "none")
            )
    return origins


def model_from_layers(
    model_class: Any,
    config: PreTrainedConfig,
    source: ModelSource,
    layers: Sequence[int],
    what: str,
) -> PreTrainedModel:
    """Build the model of `config` and copy what it takes from the teacher.

    The rest (a head in another size) is drawn from the CPU's global generator.

    Raises:
        ConfigError: The teacher's weights can't be read, are incomplete or don't fit.
    """
    teacher, info = load_model(model_class, source.path, source.field, source.config())
    model = random_model(model_class, config)
    origins = weight_origins(model, teacher, layers, source, what)
    unread = info["missing_keys"] | {key for key, *_ in info["mismatched_keys"]}
    body = f"{model.base_model_prefix}."
    lost = sorted(name for name, origin in origins.items() if origin in unread)
    if any(name.startswith(body) for name in lost):
        raise ConfigError(
            f"{source.field}: expected all weights of the layers in {what}.layers_from, got none "
            f"for {describe_names(lost)}"
        )
    weights, given = model.state_dict(), teacher.state_dict()
    taken = [name for name in weights if name in origins and name not in lost]
    with torch.no_grad():
        for name in taken:
            weights[name].copy_(given[origins[name]])
    drawn = [name for name in weights if name not in taken]
    if drawn:
        _log.info("%s: newly initialised: %s", what, describe_names(drawn))
    return model
