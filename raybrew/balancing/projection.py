"""PCGrad: a task's gradient loses what points against another task's."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["TaskGradients", "project_conflicts"]


def project_conflicts(gradients: Sequence[Tensor], seed: Sequence[int]) -> Tensor:
    """Return Σ_i g_i', g_i' being g_i without what conflicts with the others.

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
    """Takes the gradients of one task after another off a model, and puts their mixture back.

    Args:
        parameters: of the model.
        seed: of the order in which conflicts are resolved.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], seed: int):
        self._parameters, self._seed = parameters, seed
        self._taken: list[list[Tensor | None]] = []

    def take(self) -> None:
        """Take the gradients that a task has left."""
        self._taken.append([p.grad for p in self._parameters])
        for parameter in self._parameters:
            parameter.grad = None

    def put_back(self, step: int) -> None:
        """Put the sum of all tasks' gradients back, projected where tasks share parameters."""
        shared = [
            sum(each[i] is not None for each in self._taken) > 1
            for i in range(len(self._parameters))
        ]
        for i, parameter in enumerate(self._parameters):
            if not shared[i]:
                found = [each[i] for each in self._taken if each[i] is not None]
                parameter.grad = found[0] if found else None
        together = [p for p, is_shared in zip(self._parameters, shared, strict=True) if is_shared]
        if together:
            flat = [self._flat(each, shared) for each in self._taken]
            mixed = project_conflicts(flat, (self._seed, step))
            sizes = [p.numel() for p in together]
            for parameter, values in zip(together, mixed.split(sizes), strict=True):
                parameter.grad = values.view_as(parameter)
        self._taken = []

    def _flat(self, gradients: Sequence[Tensor | None], shared: Sequence[bool]) -> Tensor:
        parts = []
        for parameter, gradient, is_shared in zip(self._parameters, gradients, shared, strict=True):
            if is_shared:
                part = torch.zeros_like(parameter) if gradient is None else gradient
                parts.append(part.detach().reshape(-1))
        return torch.cat(parts)
