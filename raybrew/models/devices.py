"""Which device a process computes on, and which errors come from the device or its memory.

The device follows from the resources that a process was given, never from what PyTorch can see: a
Ray actor without a GPU of its own still sees every GPU of its node.
"""

from collections.abc import Iterator
from typing import Literal

import torch

from raybrew.errors import ConfigError
from raybrew.models.pretrained import first_line

DeviceFault = Literal["memory", "device"]

_MEMORY = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
_DEVICE = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "cuDNN error", "NCCL error", "HIP error")


def device_for(gpus: float) -> torch.device:
    """Return where a process with so many GPUs computes: the first of its own, else the CPU."""
    return torch.device("cuda" if gpus > 0 else "cpu")


def check_device(device: torch.device, who: str, setting: str) -> None:
    """Compute something on a device.

    Args:
        device: that a process's resources name.
        who: computes there.
        setting: of the job that asked for it, and what it may be instead.

    Raises:
        ConfigError: PyTorch can't use it.
    """
    try:
        # Read back, since errors of a GPU come with the next thing that waits for it.
        (torch.ones(1, device=device) + 1).item()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"{who}: its resources name a GPU, and PyTorch {torch.__version__} in its process "
            f"can't use one: {first_line(error)}. Expected a PyTorch that fits the node's driver "
            f"(CUDA {torch.version.cuda or 'is not part of this one'}): install one, or set "
            f"{setting}"
        ) from error


def free_cached_memory() -> None:
    """Give back what PyTorch keeps of a GPU's memory for later; others may use it then."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def device_fault(error: BaseException) -> DeviceFault | None:
    """Return what failed if an error isn't the computation's own: the memory or the device."""
    for each in _causes(error):
        if isinstance(each, MemoryError | torch.OutOfMemoryError):
            return "memory"
        if isinstance(each, RuntimeError):
            text = str(each)
            if any(words in text for words in _MEMORY):
                return "memory"
            if any(words in text for words in _DEVICE):
                return "device"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
