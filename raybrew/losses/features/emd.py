"""Many layers to many: the earth mover's distance between the layers of teacher and student.

The plan that moves the student's layer weights onto the teacher's at the least cost is found
exactly, by linear programming, and held constant: gradients go through the costs alone.
"""

from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from raybrew.errors import ConfigError
from raybrew.losses.features.counts import token_entries
from raybrew.losses.features.base import Features, MatchLoss
from raybrew.losses.features.numerics import Keep, stacked_layers, widen, zero_padding

__all__ = ["emd", "transport_plan"]

Weights: TypeAlias = Sequence[float | int]
LayerStates = Float[Tensor, "batch layers length hidden"]


def emd(
    student_weights: Weights | None = None, teacher_weights: Weights | None = None
) -> MatchLoss:
    """Earth mover's distance between layers, at the cost of their masked squared error.

    Σ_ij F_ij · D_ij,  D_ij = Σ_{b, l real} ‖s_i − t_j‖² / (Σ n·H),
    F = argmin_F ⟨F, D⟩ with row sums `student_weights` and column sums `teacher_weights`.
    Ships (layers, n, H). The plan is that of one micro-batch on one rank.

    Args:
        student_weights: mass of each student layer, scaled to sum 1; equal where not given.
        teacher_weights: mass of each teacher layer.

    Reference: BERT-EMD, 2010.06133.
    """
    return MatchLoss(
        name="emd",
        features=("hidden",),
        num_layers=None,
        axes=("layer", "token", "hidden"),
        statistic=stacked_layers,
        compare=partial(
            _moved_error, student_weights=student_weights, teacher_weights=teacher_weights
        ),
        count=token_entries,
        needs_same_size=True,
        projection_per_layer=True,
    )


def transport_plan(
    cost: Float[np.ndarray, "sources targets"],
    source_weights: Float[np.ndarray, " sources"],
    target_weights: Float[np.ndarray, " targets"],
) -> Float[np.ndarray, "sources targets"]:
    """Find the cheapest way to move the sources' mass onto the targets.

    argmin_F ⟨F, cost⟩,  F ≥ 0,  F·1 = source_weights,  Fᵀ·1 = target_weights.

    Args:
        cost: what moving one unit of mass costs; finite.
        source_weights: mass at each source; sums to 1.
        target_weights: mass asked for at each target; sums to 1.

    Returns:
        An optimal vertex of the transport polytope.

    Raises:
        ConfigError: costs or weights that no plan satisfies.
    """
    num_sources, num_targets = cost.shape
    row_sums = np.kron(np.eye(num_sources), np.ones((1, num_targets)))
    column_sums = np.kron(np.ones((1, num_sources)), np.eye(num_targets))
    # The last equation follows from the others.
    constraints = np.concatenate([row_sums, column_sums])[:-1]
    masses = np.concatenate([source_weights, target_weights])[:-1]
    # Half a second that every worker and teacher would pay at its start.
    from scipy.optimize import linprog

    solution = linprog(cost.reshape(-1), A_eq=constraints, b_eq=masses, method="highs")
    if not solution.success:
        raise ConfigError(
            f"emd found no plan from {num_sources} student layers to {num_targets} teacher layers: "
            f"{solution.message} Weights have to be positive, one for each layer."
        )
    return solution.x.reshape(cost.shape)


def _moved_error(
    student: Features,
    keep: Keep,
    statistic: LayerStates,
    student_weights: Weights | None,
    teacher_weights: Weights | None,
) -> Float[Tensor, " batch"]:
    errors = _layer_errors(student, keep, statistic)
    cost = errors.detach().sum(dim=0).double().cpu().numpy()
    plan = transport_plan(
        # The plan doesn't change with the unit of cost, but the solver's tolerances are absolute.
        cost / max(float(np.abs(cost).max()), np.finfo(np.float64).tiny),
        _weights(student_weights, cost.shape[0], "student"),
        _weights(teacher_weights, cost.shape[1], "teacher"),
    )
    return (errors * torch.from_numpy(plan).to(errors)).sum(dim=(1, 2))


def _layer_errors(
    student: Features, keep: Keep, statistic: LayerStates
) -> Float[Tensor, "batch student_layers teacher_layers"]:
    rows = []
    for states in student:
        student_states = zero_padding(widen(states), keep)
        columns = [
            (student_states - zero_padding(layer, keep)).square().sum(dim=(1, 2))
            for layer in statistic.unbind(dim=1)
        ]
        rows.append(torch.stack(columns, dim=1))
    return torch.stack(rows, dim=1)


def _weights(weights: Weights | None, num_layers: int, side: str) -> Float[np.ndarray, " layers"]:
    masses = np.ones(num_layers) if weights is None else np.asarray(weights, dtype=np.float64)
    if masses.shape != (num_layers,) or (masses < 0).any() or not masses.sum() > 0:
        raise ConfigError(
            f"emd takes one weight ≥ 0 for each of the {num_layers} {side} layers, not all of them "
            f"0; got {weights}."
        )
    return masses / masses.sum()
