"""Uncertainty weighting: each task's loss is divided by a variance that is learnt with it."""

import torch
from torch import Tensor, nn

from raybrew.balancing.balancer import Balancer

__all__ = ["UncertaintyWeights"]


class UncertaintyWeights(Balancer):
    """L_k ──► exp(−s_k) · L_k + s_k / 2, with s_k = log σ_k² learnt, 0 at the start.

    For a given loss the best s_k is log(2 L_k): tasks count in proportion to 1 / L_k.

    Reference:
        Kendall, Gal and Cipolla 2018, arXiv:1705.07115, equation 10 (the form for classes).
    """

    def __init__(self, num_tasks: int):
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(num_tasks))

    def parameter_of(self, task: int) -> Tensor:
        """Return s of the task, a scalar."""
        return self.log_variances[task]

    def weigh(self, loss: Tensor, task: int, parameter: Tensor | None, share: float) -> Tensor:
        """See `Balancer.weigh`."""
        assert parameter is not None, "it comes out of the forward pass"
        return torch.exp(-parameter) * loss + share * parameter / 2
