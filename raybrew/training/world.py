"""This rank among the ranks that train together.

And its random numbers. Plain torch.distributed.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

# The ranks that train one student together, seen from one of them. Plain torch.distributed.


@dataclass(frozen=True)
class World:
    """This rank and its sisters.

    Args:
        rank: from 0.
        size: ranks.
        device: where this rank computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over ranks; a collective where there are several."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def of_rank_0(self, value: float) -> float:
        """Return rank 0's value on every rank; a collective."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float32, device=self.device)
        dist.broadcast(shared, src=0)
        return float(shared)

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of the ranks; a collective."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


# What a step draws, such as dropout: a function of (seed, step, rank) alone.


def seed_step_rng(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed PyTorch for a step: a resumed run draws what it would have drawn.

    Args:
        seed: of the run.
        step: counts from 0.
        rank: counts from 0.
        device: where the model is.
    """
    parts = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    value = int(parts[0] >> np.uint64(1))
    # torch.manual_seed queues a call, with its stack, for every kind of device that isn't in use:
    # each step would take longer for it, and the queue would grow with the run.
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)
