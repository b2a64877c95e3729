"""How large a model is, and how fast: a tree of its parameters, counts, MB, latency on one core.

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
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "ParameterNode",
    "count_parameters",
    "display_parameters",
    "latency_ms",
    "parameter_tree",
    "size_mb",
]

_MB = 2**20


@dataclass
class ParameterNode:
    """A module or a parameter, with all that is below it.

    Args:
        name: Last part of the name.
        count: Numbers in the tensors that are counted here or below.
        size_bytes: Their memory.
        shared: All of it is counted elsewhere.
        children: By name; empty for a parameter, and below `max_level`.
    """

    name: str
    count: int = 0
    size_bytes: int = 0
    shared: bool = True
    children: dict[str, "ParameterNode"] = field(default_factory=dict)


def parameter_tree(model: nn.Module, max_level: int | None = None) -> ParameterNode:
    """Return the tree of a model's parameters.

    Args:
        model: Any module.
        max_level: Levels below the root; all if None. Deeper ones are summed, not lost.
    """
    root = ParameterNode("model")
    seen: set[object] = set()
    for name, tensor in model.named_parameters(remove_duplicate=False):
        key = _memory(tensor)
        parts = name.split(".")[:max_level]
        _add(root, parts, None if key in seen else tensor)
        seen.add(key)
    return root


def display_parameters(model: nn.Module, max_level: int | None = None) -> str:
    """Return the tree as a table: name, parameters, share of all, MB.

    Args:
        model: Any module.
        max_level: Levels below the root; all if None.
    """
    root = parameter_tree(model, max_level)
    rows = [
        (
            "  " * level + node.name + (" (shared)" if node.shared and node is not root else ""),
            f"{node.count:,}",
            f"{100 * node.count / max(root.count, 1):.1f} %",
            f"{node.size_bytes / _MB:.2f}",
        )
        for level, node in _walk(root)
    ]
    rows.insert(0, ("name", "parameters", "share", "MB"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(f"  {cell.rjust(width)}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
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
        for _ in range(repeats):
            for each in inputs:
                begin = time.perf_counter()
                model(**each)
                times_s.append(time.perf_counter() - begin)
    median, low, high = (float(1e3 * np.percentile(times_s, q)) for q in (50, 10, 90))
    return median, low, high


def _memory(tensor: Tensor) -> object:
    """Return what two names of one tensor have in common; meta tensors have no address."""
    return id(tensor) if tensor.is_meta or not tensor.numel() else tensor.data_ptr()


def _add(root: ParameterNode, parts: Sequence[str], counted: Tensor | None) -> None:
    nodes = [root]
    for part in parts:
        nodes.append(nodes[-1].children.setdefault(part, ParameterNode(part)))
    if counted is not None:
        for node in nodes:
            node.count += counted.numel()
            node.size_bytes += counted.numel() * counted.element_size()
            node.shared = False


def _walk(node: ParameterNode, level: int = 0) -> Iterator[tuple[int, ParameterNode]]:
    yield level, node
    for child in node.children.values():
        yield from _walk(child, level + 1)


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
