"""The ranks that train one student together, seen from one of them. Plain torch.distributed."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["World"]


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
