"""Batches made ahead of the step that reads them, in page-locked memory for a GPU."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

# Things made one after another in a thread beside the one that takes them, a few ahead of it.
#
#     thread: make(0), make(1), … ──► queue of `depth` ──► for made in ahead: …
#
# The order is that of the steps, and what is made doesn't depend on when: with any depth the same
# things come out. Depth 0 makes each thing when it is taken, without a thread.

Made = TypeVar("Made")

_LEAVE_S = 5.0
"""A thread that waits for labels that never come is left behind after so long; it is a daemon."""


@dataclass(frozen=True)
class _Failed:
    error: BaseException


class Prefetcher(Generic[Made]):
    """Makes what each step needs while the steps before it are taken.

    Args:
        make: from a step to what it needs; called in order, from one thread alone.
        steps: for which.
        depth: how many may lie ready, besides the one that is being made.

    Attributes:
        waited_s: seconds that it took until the thing that was taken last was there.
    """

    def __init__(self, make: Callable[[int], Made], steps: range, depth: int):
        self._make, self._steps, self._depth = make, steps, depth
        self._ready: queue.Queue[Made | _Failed] = queue.Queue(max(depth, 1))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raybrew-ahead", daemon=True)
        self.waited_s = 0.0

    def __enter__(self) -> "Prefetcher[Made]":
        if self._depth:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        if not self._depth:
            return
        # Room for what the thread is putting; it makes nothing after that.
        while not self._ready.empty():
            self._ready.get_nowait()
        self._thread.join(_LEAVE_S)

    def __iter__(self) -> Iterator[Made]:
        """Yield what each step needs, waiting for it where it isn't ready.

        Raises:
            BaseException: what making it raised.
        """
        for step in self._steps:
            start = time.perf_counter()
            made = self._ready.get() if self._depth else self._make(step)
            self.waited_s = time.perf_counter() - start
            if isinstance(made, _Failed):
                raise made.error
            yield made

    def _run(self) -> None:
        for step in self._steps:
            if self._stopped.is_set():
                return
            try:
                made = self._make(step)
            except BaseException as error:  # raised again by who takes it
                self._ready.put(_Failed(error))
                return
            self._ready.put(made)


# Memory that the batches of later steps use again, page-locked where a GPU reads it.
#
#     tensors of a step ──► one block of host memory ──► device
#
# A step's tensors lie in one block. Blocks are taken in turn; one comes up again when its step is
# done, so a run keeps as many blocks as steps are on their way, whatever its length.

_ALIGNMENT = 64
_HEADROOM = 1.25


class _PinnedBuffer:
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


class PinnedBuffers:
    """The blocks of a run.

    Args:
        count: steps that are on their way at once, the one that is taken included.
        device: where the tensors are needed.
    """

    def __init__(self, count: int, device: torch.device):
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._blocks = [_PinnedBuffer(self._on_gpu) for _ in range(count)]
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
