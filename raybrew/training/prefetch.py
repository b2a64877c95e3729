"""Makes what the next steps read while the current one runs, in page-locked memory for a GPU.

    thread: make(0), make(1), … ──► queue of `depth` ──► for made in prefetcher: …
    tensors of a step ──► one buffer in host memory ──► device

The order is that of the steps, and what is made doesn't depend on when: every depth gives the same.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")

_JOIN_S = 5.0
"""A thread that waits for labels that never come is abandoned after so long; it is a daemon."""
_ALIGNMENT = 64
_HEADROOM = 1.25


class Prefetcher(Generic[Made]):
    """Makes what each step needs while the steps before it run; a context manager.

    Args:
        make: from a step to what it needs; called in order, from one thread alone.
        steps: for which.
        depth: how many may lie ready, besides the one that is being made; 0 makes each one when
            it is taken, without a thread.

    Attributes:
        waited_s: seconds that the step that was taken last waited for.
    """

    def __init__(self, make: Callable[[int], Made], steps: range, depth: int):
        self._make, self._steps, self._depth = make, steps, depth
        self._ready: queue.Queue[Future[Made]] = queue.Queue(max(depth, 1))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raybrew-prefetch", daemon=True)
        self.waited_s = 0.0

    def __enter__(self) -> "Prefetcher[Made]":
        if self._depth:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        if not self._depth:
            return
        # Room for what the thread is putting; it makes nothing after that.
        while not self._ready.empty():
            self._ready.get_nowait()
        self._thread.join(_JOIN_S)

    def __iter__(self) -> Iterator[Made]:
        """Yield what each step needs, waiting for it where it isn't ready.

        Raises:
            BaseException: what making it raised.
        """
        for step in self._steps:
            start = time.perf_counter()
            made = self._ready.get().result() if self._depth else self._make(step)
            self.waited_s = time.perf_counter() - start
            yield made

    def _run(self) -> None:
        for step in self._steps:
            if self._stopped.is_set():
                return
            made: Future[Made] = Future()
            try:
                made.set_result(self._make(step))
            except BaseException as error:  # raised again where it is taken
                made.set_exception(error)
            self._ready.put(made)
            if made.exception() is not None:
                return


class PinnedBuffers:
    """Host memory that the steps of a run use in turn, page-locked where a GPU reads it.

    The tensors of a step lie in one buffer, which is used again when its step is done: a run keeps
    as many buffers as there are steps under way, whatever its length.

    Args:
        count: steps under way at once, the one that runs included.
        device: where the tensors are needed.
    """

    def __init__(self, count: int, device: torch.device):
        self._device = device
        on_gpu = device.type == "cuda"
        self._buffers = [_Buffer(on_gpu) for _ in range(count)]
        self._stream = torch.cuda.Stream(device) if on_gpu else None

    def bring(self, step: int, value: Any) -> tuple[Any, "torch.cuda.Event | None"]:
        """Copy a step's tensors into its buffer and on to the device.

        Args:
            step: in rising order; the one `count` steps before is done.
            value: tensors in host memory, within mappings, lists, tuples and dataclasses.

        Returns:
            The same with tensors on the device, and on a GPU the event after which they are there.
        """
        buffer = self._buffers[step % len(self._buffers)]
        if self._stream is None:
            buffer.begin()
            return map_tensors(value, buffer.hold), None
        # The current GPU is a setting of each thread.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            buffer.begin()
            moved = map_tensors(
                value, lambda each: buffer.hold(each).to(self._device, non_blocking=True)
            )
            buffer.copied = torch.cuda.Event()
            buffer.copied.record(self._stream)
        return moved, buffer.copied


class _Buffer:
    """Host memory of one step; grows to the largest step that it has held."""

    def __init__(self, pinned: bool):
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._used = 0
        self.copied: torch.cuda.Event | None = None

    def begin(self) -> None:
        """Start a step; what the buffer held is no longer needed."""
        if self.copied is not None:
            self.copied.synchronize()
        if self._used > len(self._memory):
            self._memory = torch.empty(
                int(self._used * _HEADROOM), dtype=torch.uint8, pin_memory=self._pinned
            )
        self._used = 0

    def hold(self, tensor: Tensor) -> Tensor:
        """Return a copy in the buffer, or the tensor itself where the buffer is still too small."""
        start = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        self._used = start + tensor.nbytes
        if self._used > len(self._memory):
            return tensor
        place = self._memory[start : self._used].view(tensor.dtype).view(tensor.shape)
        return place.copy_(tensor)


def wait_for(copied: "torch.cuda.Event | None", value: Any) -> None:
    """Have the current stream use a value of `PinnedBuffers.bring` once it is there.

    Args:
        copied: the event that came with it; None where there is nothing to wait for.
        value: the allocator keeps its tensors until the stream is done with them.
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
