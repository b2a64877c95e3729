"""What a saved model is: its parameters, its memory, how fast it answers on this machine."""

import time
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from raybrew.errors import ConfigError
from raybrew.models import bigru
from raybrew.models.padding import set_padding_token
from raybrew.models.parameters import count_parameters, display_parameters, latency_ms, size_mb
from raybrew.models.positions import most_positions
from raybrew.models.pretrained import (
    BUILD_ERRORS,
    architecture_of,
    describe_names,
    first_line,
    load_model,
    read_config,
)
from raybrew.models.student_files import task_folders
from raybrew.paths import user_path

__all__ = ["Inspection", "inspect_model", "render_inspection"]


@dataclass(frozen=True)
class Speed:
    """How fast a model answers.

    Args:
        latency_ms: one example on one core: median, 10th and 90th percentile.
        examples_per_s: in batches on all threads.
    """

    latency_ms: tuple[float, float, float]
    examples_per_s: float


@dataclass(frozen=True)
class Inspection:
    """What was found of a model.

    Args:
        name: its folder or hub id.
        architecture: class of transformers.
        tree: its parameters as a table.
        parameters: how many numbers they hold, shared ones once.
        megabytes: their memory, in 2²⁰ bytes.
        speed: how fast it answers; None if it takes more than tokens.
        untimed: why it wasn't timed, if it wasn't.
        length: tokens of an example.
        batch_size: examples of a batch.
    """

    name: str
    architecture: str
    tree: str
    parameters: int
    megabytes: float
    speed: Speed | None
    untimed: str
    length: int
    batch_size: int


def inspect_model(
    model: str, *, max_level: int = 3, length: int = 64, batch_size: int = 32, repeats: int = 10
) -> list[Inspection]:
    """Look at a model, or at each task's model of a student of several tasks.

    Args:
        model: folder that transformers loads, or a hub id.
        max_level: levels of the parameter tree.
        length: tokens of the examples that are timed; what they say doesn't matter.
        batch_size: examples of a batch, for the throughput.
        repeats: timed forward passes.

    Raises:
        ConfigError: no model is there, or it can't read so many tokens.
    """
    folders = task_folders(user_path(model, "model"))
    names = [str(folder) for folder in folders.values()] or [model]
    return [_inspect(name, max_level, length, batch_size, repeats) for name in names]


def render_inspection(found: Inspection) -> str:
    """Return it as text that a person reads."""
    about = (
        f"{found.name} ({found.architecture})\n\n{found.tree}\n\n"
        f"{found.parameters:,} parameters, {found.megabytes:.1f} MB; "
    )
    if found.speed is None:
        return f"{about}it can't be timed on tokens alone: {found.untimed}\n"
    median, low, high = found.speed.latency_ms
    return (
        f"{about}examples of {found.length} "
        f"tokens: {median:.1f} ms each on one core (10 % to 90 %: {low:.1f} to {high:.1f}), "
        f"{found.speed.examples_per_s:.0f} a second in batches of {found.batch_size} on "
        f"{torch.get_num_threads()} threads\n"
    )


def _inspect(name: str, max_level: int, length: int, batch_size: int, repeats: int) -> Inspection:
    config = read_config(name, "model")
    if getattr(config.get_text_config(), "pad_token_id", 0) is None:
        set_padding_token(config, 0)  # no token of `_some_ids`
    model = _load(name, config)
    most = most_positions(model)
    if most is not None and length > most:
        raise ConfigError(f"--length: expected at most {most} for {name}, got {length}")
    speed, untimed = None, ""
    try:
        ids = _some_ids(config, batch_size, length)
        speed = Speed(
            latency_ms(model, [{"input_ids": row[None]} for row in ids], repeats=repeats),
            _examples_per_s(model, {"input_ids": ids}, repeats),
        )
    except BUILD_ERRORS as error:  # it reads pictures or sounds, or wants more than a text
        untimed = _reason(model, error)
    return Inspection(
        name=name,
        architecture=type(model).__name__,
        tree=display_parameters(model, max_level),
        parameters=count_parameters(model),
        megabytes=size_mb(model),
        speed=speed,
        untimed=untimed,
        length=length,
        batch_size=batch_size,
    )


def _reason(model: nn.Module, error: Exception) -> str:
    reads = getattr(model, "main_input_name", "input_ids")
    if reads != "input_ids":
        return f"it reads {reads}"
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return "it has a decoder, which reads a text of its own"
    if isinstance(error, (AttributeError, TypeError)):
        return "it needs other inputs besides"
    return first_line(error)


def _load(name: str, config: PreTrainedConfig) -> nn.Module:
    model, info = load_model(_class_of(config, name), name, "model", config)
    if wrong := info["mismatched_keys"]:
        names = describe_names(str(each[0] if isinstance(each, tuple) else each) for each in wrong)
        raise ConfigError(
            f"{name}: expected weights of the sizes that config.json says, got others of {names}"
        )
    return model.eval()


def _class_of(config: PreTrainedConfig, name: str) -> Any:
    """Return the class that wrote the folder, with its head; the bare model where none is named."""
    named = architecture_of(config, name)
    for module in (transformers, bigru):
        found = getattr(module, named, None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            if found.config_class is not None and not isinstance(config, found.config_class):
                raise ConfigError(
                    f"{name}: expected `architectures` of config.json to name a class of models of "
                    f"type {config.model_type}, got {named}"
                )
            return found
    return AutoModel


def _some_ids(config: PreTrainedConfig, batch_size: int, length: int) -> Tensor:
    vocabulary = int(config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    lowest = min(5, vocabulary - 1)  # past the special tokens of most vocabularies
    ids = torch.randint(lowest, vocabulary, (batch_size, length), generator=generator)
    if config.is_encoder_decoder and config.eos_token_id is not None:
        ids[:, -1] = config.eos_token_id  # where it reads its answer
    return ids


@torch.inference_mode()
def _examples_per_s(model: nn.Module, batch: dict[str, Tensor], repeats: int) -> float:
    model(**batch)
    start = time.perf_counter()
    for _ in range(repeats):
        model(**batch)
    return repeats * len(batch["input_ids"]) / (time.perf_counter() - start)
