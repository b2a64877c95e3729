"""This rank among the ranks that train together, and its random numbers. No Ray."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This rank and the others. Its methods are collectives: every rank calls them alike.

    Args:
        rank: from 0.
        size: ranks.
        device: where this rank computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the sum over ranks."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def broadcast(self, value: float) -> float:
        """Return rank 0's value on every rank."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float32, device=self.device)
        dist.broadcast(shared, src=0)
        return float(shared)

    def all_gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def seed_step_rng(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed PyTorch for a step: a resumed run draws what it would have drawn.

    What a step draws, such as dropout, is thus a function of (seed, step, rank) alone.

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
