"""What a saved model is: its parameters, its memory, how fast it answers on this machine."""

import time
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig

from raybrew.errors import ConfigError
from raybrew.models import bigru
from raybrew.models.parameters import count_parameters, display_parameters, latency_ms, size_mb
from raybrew.models.pretrained import first_line, quiet_transformers, read_config
from raybrew.models.student_files import task_folders
from raybrew.paths import user_path

__all__ = ["Inspection", "inspect_model", "render_inspection"]


@dataclass(frozen=True)
class Inspection:
    """What was found of a model.

    Args:
        name: its folder or hub id.
        architecture: class of transformers.
        tree: its parameters as a table.
        parameters: how many numbers they hold, shared ones once.
        megabytes: their memory, in 2²⁰ bytes.
        latency_ms: one example on one core: median, 10th and 90th percentile.
        examples_per_s: in batches on all threads.
        length: tokens of an example.
        batch_size: examples of a batch.
    """

    name: str
    architecture: str
    tree: str
    parameters: int
    megabytes: float
    latency_ms: tuple[float, float, float]
    examples_per_s: float
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
    median, low, high = found.latency_ms
    return (
        f"{found.name} ({found.architecture})\n\n{found.tree}\n\n"
        f"{found.parameters:,} parameters, {found.megabytes:.1f} MB; examples of {found.length} "
        f"tokens: {median:.1f} ms each on one core (10 % to 90 %: {low:.1f} to {high:.1f}), "
        f"{found.examples_per_s:.0f} a second in batches of {found.batch_size} on "
        f"{torch.get_num_threads()} threads\n"
    )


def _inspect(name: str, max_level: int, length: int, batch_size: int, repeats: int) -> Inspection:
    config = read_config(name, "model")
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and length > most:
        raise ConfigError(f"--length: expected at most {most} for {name}, got {length}")
    model = _load(name, config)
    ids = _some_ids(config, batch_size, length)
    return Inspection(
        name=name,
        architecture=type(model).__name__,
        tree=display_parameters(model, max_level),
        parameters=count_parameters(model),
        megabytes=size_mb(model),
        latency_ms=latency_ms(model, [{"input_ids": row[None]} for row in ids], repeats=repeats),
        examples_per_s=_examples_per_s(model, {"input_ids": ids}, repeats),
        length=length,
        batch_size=batch_size,
    )


def _load(name: str, config: PreTrainedConfig) -> nn.Module:
    try:
        with quiet_transformers():
            model = _class_of(config).from_pretrained(name, config=config, dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"model: expected weights at {name!r}, got: {first_line(error)}"
        ) from error
    return model.eval()


def _class_of(config: PreTrainedConfig) -> Any:
    """Return the class that wrote the folder, with its head; the bare model where none is named."""
    named = (config.architectures or [""])[0]
    for module in (transformers, bigru):
        found = getattr(module, named, None)
        if isinstance(found, type) and issubclass(found, nn.Module):
            return found
    return AutoModel


def _some_ids(config: PreTrainedConfig, batch_size: int, length: int) -> Tensor:
    vocabulary = int(config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    lowest = min(5, vocabulary - 1)  # past the special tokens of most vocabularies
    return torch.randint(lowest, vocabulary, (batch_size, length), generator=generator)


@torch.inference_mode()
def _examples_per_s(model: nn.Module, batch: dict[str, Tensor], repeats: int) -> float:
    model(**batch)
    start = time.perf_counter()
    for _ in range(repeats):
        model(**batch)
    return repeats * len(batch["input_ids"]) / (time.perf_counter() - start)
