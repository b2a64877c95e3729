"""Memory that the batches of later steps use again, page-locked where a GPU reads it.

    tensors of a step ──► one block of host memory ──► device

A step's tensors lie in one block. Blocks are taken in turn; one comes up again when its step is
done, so a run keeps as many blocks as steps are on their way, whatever its length.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Blocks", "map_tensors", "wait_for"]

_ALIGNMENT = 64
_HEADROOM = 1.25


class _Block:
    """Host memory of one step; grows to the largest step that it has held."""

    def __init__(self, pinned: bool):
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._used = 0
        self.copied: torch.cuda.Event | None = None

    def begin(self) -> None:
        """Make room; what the block held is no longer needed."""
        if self.copied is not None:
            self.copied.synchronize()
        if self._used > len(self._memory):
            self._memory = torch.empty(
                int(self._used * _HEADROOM), dtype=torch.uint8, pin_memory=self._pinned
            )
        self._used = 0

    def hold(self, tensor: Tensor) -> Tensor:
        """Return a copy in the block, or the tensor itself where the block is still too small."""
        start = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        self._used = start + tensor.nbytes
        if self._used > len(self._memory):
            return tensor
        place = self._memory[start : self._used].view(tensor.dtype).view(tensor.shape)
        return place.copy_(tensor)


class Blocks:
    """The blocks of a run.

    Args:
        count: steps that are on their way at once, the one that is taken included.
        device: where the tensors are needed.
    """

    def __init__(self, count: int, device: torch.device):
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._blocks = [_Block(self._on_gpu) for _ in range(count)]
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None

    def bring(self, step: int, value: Any) -> tuple[Any, "torch.cuda.Event | None"]:
        """Copy a step's tensors into its block and on to the device.

        Args:
            step: in rising order; that of `count` steps before is done.
            value: tensors in host memory, within mappings, lists, tuples and dataclasses.

        Returns:
            The same with tensors on the device, and on a GPU the event after which they are there.
        """
        block = self._blocks[step % len(self._blocks)]
        if self._stream is None:
            block.begin()
            return map_tensors(value, block.hold), None
        # Which GPU is current is a matter of each thread.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            block.begin()
            moved = map_tensors(
                value, lambda each: block.hold(each).to(self._device, non_blocking=True)
            )
            block.copied = torch.cuda.Event()
            block.copied.record(self._stream)
        return moved, block.copied


def wait_for(copied: "torch.cuda.Event | None", value: Any) -> None:
    """Have the current stream use a value of `Blocks.bring` once it is there.

    Args:
        copied: the event that came with it; None where there is nothing to wait for.
        value: its tensors are kept by the allocator until the stream is done with them.
    """
    if copied is None:
        return
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)

    def used(tensor: Tensor) -> Tensor:
        tensor.record_stream(stream)
        return tensor

    map_tensors(value, used)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return the same value with each of its tensors replaced by `function` of it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(each, function) for key, each in value.items()}
    if isinstance(value, list | tuple):
        mapped = [map_tensors(each, function) for each in value]
        # A NamedTuple takes its fields one by one.
        return type(value)(*mapped) if hasattr(value, "_fields") else type(value)(mapped)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: map_tensors(getattr(value, f.name), function) for f in fields(value)}
        )
    return value
