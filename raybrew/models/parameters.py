"""How large a model is, and how fast: its parameters as a tree, memory, latency, throughput.

    model                      66     100.0 %     0.00 MB
      embedding                40      60.6 %     0.00 MB
      encoder                  26      39.4 %     0.00 MB
      head (shared)             0       0.0 %     0.00 MB

A tensor that several names share counts where it comes first. 1 MB is 2²⁰ bytes. Buffers, such as
position ids and running means, aren't parameters and don't count.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from raybrew.config.section import user_path
from raybrew.errors import ConfigError
from raybrew.models import bigru
from raybrew.models.inputs import most_positions, set_padding_token
from raybrew.models.pretrained import (
    BUILD_ERRORS,
    architecture_of,
    describe_names,
    first_line,
    load_model,
    read_config,
)
from raybrew.models.students import task_folders

_MB = 2**20


class ParameterNode:
    """A module or a parameter, with all that is below it.

    Args:
        name: Last part of the name.

    Attributes:
        count: Numbers in the tensors that are counted here or below.
        size_bytes: Their memory.
        shared: All of it is counted elsewhere.
        children: By name; empty for a parameter, and below `max_level`.
    """

    def __init__(self, name: str):
        self.name, self.count, self.size_bytes, self.shared = name, 0, 0, True
        self.children: dict[str, ParameterNode] = {}

    def add(self, tensor: Tensor) -> None:
        """Count a tensor that is here or below."""
        self.count += tensor.numel()
        self.size_bytes += tensor.numel() * tensor.element_size()
        self.shared = False


def parameter_tree(model: nn.Module, max_level: int | None = None) -> ParameterNode:
    """Return the tree of a model's parameters.

    Args:
        model: Any module.
        max_level: Levels below the root; all if None. Deeper ones are summed, not lost.
    """
    root = ParameterNode("model")
    seen: set[object] = set()
    for name, tensor in model.named_parameters(remove_duplicate=False):
        nodes = [root]
        for part in name.split(".")[:max_level]:
            nodes.append(nodes[-1].children.setdefault(part, ParameterNode(part)))
        # What two names of one tensor have in common; meta tensors have no address.
        key = id(tensor) if tensor.is_meta or not tensor.numel() else tensor.data_ptr()
        if key not in seen:
            for node in nodes:
                node.add(tensor)
        seen.add(key)
    return root


def display_parameters(model: nn.Module, max_level: int | None = None) -> str:
    """Return the tree as a table: name, parameters, share of all, MB.

    Args:
        model: Any module.
        max_level: Levels below the root; all if None.
    """
    root = parameter_tree(model, max_level)
    rows = [("name", "parameters", "share", "MB")]

    def add_rows(node: ParameterNode, level: int) -> None:
        shared = " (shared)" if node.shared and node is not root else ""
        share = 100 * node.count / max(root.count, 1)
        size = f"{node.size_bytes / _MB:.2f}"
        rows.append(("  " * level + node.name + shared, f"{node.count:,}", f"{share:.1f} %", size))
        for child in node.children.values():
            add_rows(child, level + 1)

    add_rows(root, 0)
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(
        "  ".join([name.ljust(first), *map(str.rjust, cells, others)]) for name, *cells in rows
    )


def count_parameters(model: nn.Module) -> int:
    """Return how many numbers the model's parameters hold, shared ones once."""
    return parameter_tree(model, max_level=0).count


def size_mb(model: nn.Module) -> float:
    """Return the memory of the model's parameters in MB of 2²⁰ bytes, shared ones once."""
    return parameter_tree(model, max_level=0).size_bytes / _MB


def latency_ms(
    model: nn.Module,
    inputs: Sequence[dict[str, Tensor]],
    *,
    repeats: int = 3,
    warmup: int = 3,
) -> tuple[float, float, float]:
    """Time the forward pass of single examples on one CPU core, in evaluation mode.

    Args:
        model: On the CPU; its modes and PyTorch's threads are put back after.
        inputs: One example each, as keyword arguments with tensors of batch size 1.
        repeats: Timed passes over all inputs.
        warmup: Untimed forward passes before.

    Returns:
        Median, 10th and 90th percentile, in milliseconds.

    Raises:
        ValueError: There are no inputs, a batch isn't of one example, or the model isn't on a CPU.
    """
    sizes = {tensor.shape[0] if tensor.dim() else 0 for each in inputs for tensor in each.values()}
    if sizes != {1} or repeats < 1:
        raise ValueError(
            f"expected inputs of batch size 1 and repeats of at least 1, got {len(inputs)} inputs "
            f"of batch sizes {sorted(sizes)} and {repeats} repeats"
        )
    devices = {parameter.device.type for parameter in model.parameters()}
    if devices - {"cpu"}:
        raise ValueError(f"expected a model on the CPU, got one on {', '.join(sorted(devices))}")
    times_s: list[float] = []
    with _one_thread(), _evaluating(model), torch.inference_mode():
        for index in range(warmup):
            model(**inputs[index % len(inputs)])
        for each in [*inputs] * repeats:
            begin = time.perf_counter()
            model(**each)
            times_s.append(time.perf_counter() - begin)
    median, low, high = (float(1e3 * np.percentile(times_s, q)) for q in (50, 10, 90))
    return median, low, high


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class Inspection:
    """What `raybrew inspect` shows of a model.

    Args:
        name: its folder or hub id.
        architecture: class of transformers.
        tree: its parameters as a table.
        parameters: how many numbers they hold, shared ones once.
        megabytes: their memory, in 2²⁰ bytes.
        length: tokens of an example.
        batch_size: examples of a batch.
        latency_ms: of one example on one core: median, 10th and 90th percentile; None if the model
            takes more than tokens.
        examples_per_s: in batches on all threads.
        untimed: why it wasn't timed, if it wasn't.
    """

    name: str
    architecture: str
    tree: str
    parameters: int
    megabytes: float
    length: int
    batch_size: int
    latency_ms: tuple[float, float, float] | None = None
    examples_per_s: float = 0.0
    untimed: str = ""

    def __str__(self) -> str:
        about = (
            f"{self.name} ({self.architecture})\n\n{self.tree}\n\n"
            f"{self.parameters:,} parameters, {self.megabytes:.1f} MB; "
        )
        if self.latency_ms is None:
            return f"{about}it can't be timed on tokens alone: {self.untimed}\n"
        median, low, high = self.latency_ms
        return (
            f"{about}examples of {self.length} "
            f"tokens: {median:.1f} ms each on one core (10 % to 90 %: {low:.1f} to {high:.1f}), "
            f"{self.examples_per_s:.0f} a second in batches of {self.batch_size} on "
            f"{torch.get_num_threads()} threads\n"
        )


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


def _inspect(name: str, max_level: int, length: int, batch_size: int, repeats: int) -> Inspection:
    config = read_config(name, "model")
    if getattr(config.get_text_config(), "pad_token_id", 0) is None:
        set_padding_token(config, 0)  # no token of `_random_ids`
    model = _load(name, config)
    most = most_positions(model)
    if most is not None and length > most:
        raise ConfigError(f"--length: expected at most {most} for {name}, got {length}")
    timed: dict[str, Any]
    try:
        ids = _random_ids(config, batch_size, length)
        latency = latency_ms(model, [{"input_ids": row[None]} for row in ids], repeats=repeats)
        timed = {"latency_ms": latency, "examples_per_s": _examples_per_s(model, ids, repeats)}
    except BUILD_ERRORS as error:  # it reads pictures or sounds, or wants more than a text
        timed = {"untimed": _why_untimed(model, error)}
    return Inspection(
        name=name,
        architecture=type(model).__name__,
        tree=display_parameters(model, max_level),
        parameters=count_parameters(model),
        megabytes=size_mb(model),
        length=length,
        batch_size=batch_size,
        **timed,
    )


def _why_untimed(model: PreTrainedModel, error: Exception) -> str:
    if model.main_input_name != "input_ids":
        return f"it reads {model.main_input_name}"
    if model.config.is_encoder_decoder:
        return "it has a decoder, which reads a text of its own"
    if isinstance(error, (AttributeError, TypeError)):
        return "it needs other inputs besides"
    return first_line(error)


def _load(name: str, config: PreTrainedConfig) -> PreTrainedModel:
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


def _random_ids(config: PreTrainedConfig, batch_size: int, length: int) -> Tensor:
    vocabulary = int(config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    lowest = min(5, vocabulary - 1)  # past the special tokens of most vocabularies
    ids = torch.randint(lowest, vocabulary, (batch_size, length), generator=generator)
    if config.is_encoder_decoder and config.eos_token_id is not None:
        ids[:, -1] = config.eos_token_id  # where it reads its answer
    return ids


@torch.inference_mode()
def _examples_per_s(model: nn.Module, ids: Tensor, repeats: int) -> float:
    model(input_ids=ids)
    start = time.perf_counter()
    for _ in range(repeats):
        model(input_ids=ids)
    return repeats * len(ids) / (time.perf_counter() - start)
