"""Balancing of tasks: uncertainty weights, dynamic weight average, PCGrad.

loss of a task ──► Balancer.weigh ──► backward ──► (pcgrad on the tasks' gradients) ──► step
                      ▲                                                     │
                      └──────────── Balancer.observe: loss of the whole batch ┘
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from raybrew.config import MixingConfig


class Balancer(nn.Module):
    """Leaves every loss as it is; checkpoints keep the parameters and buffers of its subclasses."""

    observes = False
    """Whether it needs the losses of whole batches."""

    def parameter_of(self, task: int) -> Tensor | None:
        """Return what is learnt for a task besides the student.

        DDP has to meet it among the outputs of the forward pass.
        """
        return None

    def weigh(self, loss: Tensor, task: int, parameter: Tensor | None, share: float) -> Tensor:
        """Weigh a part of a task's loss.

        Args:
            loss: of this rank's rows of one forward pass, a scalar; the parts add up.
            task: whose.
            parameter: that of `parameter_of`, out of the forward pass.
            share: this part's of what is added once a batch; the shares add up to 1.
        """
        return loss

    def start_step(self, epoch: int) -> None:
        """Note that a step of this epoch starts."""

    def observe(self, task: int, loss: Tensor) -> None:
        """See the loss of a whole batch, the same on every rank."""


class DynamicWeightAverage(Balancer):
    """Counts a task more whose loss has stopped falling (DWA).

    w_k = K · exp(r_k / T) / Σ_i exp(r_i / T), with r_k = L_k(e − 1) / L_k(e − 2).

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

    def start_step(self, epoch: int) -> None:
        """Close the epoch before, where a new one begins."""
        if epoch == int(self.epoch):
            return
        self.epoch.fill_(epoch)
        self.earlier.copy_(torch.stack([self.earlier[1], self.sums / self.counts]))
        self.sums.zero_()
        self.counts.zero_()

    def observe(self, task: int, loss: Tensor) -> None:
        """Add the loss of a whole batch to its epoch's, unless it isn't finite."""
        if not bool(loss.isfinite()):
            return
        self.sums[task] += loss
        self.counts[task] += 1


class UncertaintyWeights(Balancer):
    """Divides each task's loss by a variance that is learnt with it.

    L_k ──► exp(−s_k) · L_k + s_k / 2, with s_k = log σ_k² learnt, 0 at the start.

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


def pcgrad(gradients: Sequence[Tensor], seed: Sequence[int]) -> Tensor:
    """PCGrad: return Σ_i g_i', where g_i' is g_i without what conflicts with other tasks.

    For every other task j, in random order: g_i' ← g_i' − (g_i'·g_j / |g_j|²) g_j if g_i'·g_j < 0.

    Args:
        gradients: one a task, each (n,).
        seed: of the order, the same on every rank.

    Returns:
        (n,).

    Reference:
        Yu et al. 2020, arXiv:2001.06782, algorithm 1.
    """
    generator = np.random.Generator(np.random.PCG64(list(seed)))
    total = torch.zeros_like(gradients[0])
    for number, gradient in enumerate(gradients):
        projected = gradient.clone()
        for other in generator.permutation(len(gradients)):
            along = gradients[other]
            product = torch.dot(projected, along)
            if other != number and product < 0:
                projected -= product / torch.dot(along, along) * along
        total += projected
    return total


class TaskGradients:
    """Takes the gradients of one task after another off a model, and puts their sum back.

    Args:
        parameters: of the model.
        seed: of the order in which conflicts are resolved.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], seed: int):
        self._parameters, self._seed = parameters, seed
        self._taken: list[list[Tensor | None]] = []

    def take(self) -> None:
        """Take the gradients of the task whose backward pass has just run."""
        self._taken.append([p.grad for p in self._parameters])
        for parameter in self._parameters:
            parameter.grad = None

    def put_back(self, step: int) -> None:
        """Put the sum of all tasks' gradients back, by `pcgrad` where tasks share parameters."""
        shared: list[tuple[nn.Parameter, list[Tensor]]] = []
        by_parameter = zip(*self._taken, strict=True)
        for parameter, gradients in zip(self._parameters, by_parameter, strict=True):
            found = [each for each in gradients if each is not None]
            if len(found) < 2:
                parameter.grad = found[0] if found else None
                continue
            each = [torch.zeros_like(parameter) if g is None else g for g in gradients]
            shared.append((parameter, [g.detach().reshape(-1) for g in each]))
        if shared:
            tasks = range(len(self._taken))
            flat = [torch.cat([each[task] for _, each in shared]) for task in tasks]
            mixed = pcgrad(flat, (self._seed, step))
            sizes = [parameter.numel() for parameter, _ in shared]
            for (parameter, _), values in zip(shared, mixed.split(sizes), strict=True):
                parameter.grad = values.view_as(parameter)
        self._taken = []


def make_balancer(mixing: MixingConfig, num_tasks: int) -> Balancer:
    """Return what the job asks for; it leaves the loss of a single task alone."""
    if num_tasks > 1 and mixing.balancing == "uncertainty":
        return UncertaintyWeights(num_tasks)
    if num_tasks > 1 and mixing.balancing == "dwa":
        return DynamicWeightAverage(num_tasks, mixing.dwa_temperature)
    return Balancer()
