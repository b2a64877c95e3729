"""Dynamic weight average: a task whose loss has stopped falling counts more."""

import torch
from torch import Tensor

from raybrew.balancing.balancer import Balancer

__all__ = ["LossDescent"]


class LossDescent(Balancer):
    """w_k = K · exp(r_k / T) / Σ_i exp(r_i / T), with r_k = L_k(e − 1) / L_k(e − 2).

    L_k(e) is the mean loss of task k in epoch e. While there are no two epochs to look back on, or
    a task did not come up in one of them, its r is 1.

    Reference:
        Liu, Johns and Davison 2019, arXiv:1803.10704, equation 7.

    Args:
        num_tasks: K.
        temperature: T.
    """

    observes = True
    epoch: Tensor
    sums: Tensor
    counts: Tensor
    earlier: Tensor

    def __init__(self, num_tasks: int, temperature: float):
        super().__init__()
        self._temperature = temperature
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        for name in ("sums", "counts"):
            self.register_buffer(name, torch.zeros(num_tasks, dtype=torch.float64))
        # Mean losses of the last epoch but one, and of the last one.
        self.register_buffer("earlier", torch.full((2, num_tasks), torch.nan).double())

    def weights(self) -> Tensor:
        """Return w, float64 (K,); they add up to K."""
        ratios = self.earlier[1] / self.earlier[0]
        ratios = torch.where(ratios.isfinite(), ratios, 1.0)
        return len(ratios) * torch.softmax(ratios / self._temperature, dim=0)

    def weigh(self, loss: Tensor, task: int, parameter: Tensor | None, share: float) -> Tensor:
        """See `Balancer.weigh`."""
        return loss * self.weights()[task].to(loss.dtype)

    def enter(self, epoch: int) -> None:
        """Take stock of the epoch before, where a new one begins."""
        if epoch == int(self.epoch):
            return
        self.epoch.fill_(epoch)
        self.earlier.copy_(torch.stack([self.earlier[1], self.sums / self.counts]))
        self.sums.zero_()
        self.counts.zero_()

    def observe(self, task: int, loss: Tensor) -> None:
        """Add the loss of a whole batch to its epoch's, unless the step is one to leave out."""
        if not bool(loss.isfinite()):
            return
        self.sums[task] += loss
        self.counts[task] += 1
