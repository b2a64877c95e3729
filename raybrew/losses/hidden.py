"""Match losses on hidden states: of one layer, of two layers, of many layers.

Many layers are matched by the earth mover's distance: the plan that moves the student's layer
weights onto the teacher's at the least cost is found exactly, by linear programming, and held
constant, so that gradients go through the costs alone.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from raybrew.errors import ConfigError
from raybrew.losses.match_loss import (
    Features,
    MatchLoss,
    examples,
    gram_entries,
    pairs,
    token_entries,
    tokens,
)
from raybrew.losses.numerics import (
    Keep,
    full_precision,
    pair_mask,
    stacked_layers,
    unit,
    widen,
    zero_padding,
)

States = Float[Tensor, "batch length hidden"]
Vectors = Float[Tensor, "batch hidden"]
LayerStates = Float[Tensor, "batch layers length hidden"]
TokenGram = Float[Tensor, "batch length length"]
FeatureGram = Float[Tensor, "batch hidden hidden"]
PerRow = Float[Tensor, " batch"]
Divisor = Literal["length", "hidden"]
FspPayload = Literal["states", "gram"]
Weights: TypeAlias = Sequence[float | int]


def hidden_mse() -> MatchLoss:
    """Squared error of hidden states at real tokens.

    Σ_{l real} ‖s_l − t_l‖² / (n·H). Ships (n, H).

    Reference: TextBrewer (2002.12620), `hid_mse_loss`.
    """
    return MatchLoss(
        name="hidden_mse",
        axes=("token", "hidden"),
        statistic=_states,
        compare=_squared_error,
        count=token_entries,
        needs_same_size=True,
    )


def cos() -> MatchLoss:
    """1 − cosine of hidden states at real tokens.

    Σ_{l real} (1 − s_l·t_l / (‖s_l‖‖t_l‖)) / n. Ships (n, H), as `hidden_mse` does, so
    that one store serves both.

    Reference: DistilBERT, 1910.01108.
    """
    return MatchLoss(
        name="cos",
        axes=("token", "hidden"),
        statistic=_states,
        compare=_cosine_distance,
        count=tokens,
        needs_same_size=True,
    )


def pkd() -> MatchLoss:
    """Squared distance of normalised vectors of the first token.

    ‖s₀/‖s₀‖ − t₀/‖t₀‖‖². Ships (H,). The first real token is taken: position 0 under padding
    on the right, as in TextBrewer.

    Reference: Patient Knowledge Distillation, 1908.09355.
    """
    return MatchLoss(
        name="pkd",
        axes=("hidden",),
        statistic=_unit_first_vector,
        compare=_squared_distance_of_first,
        count=examples,
        needs_same_size=True,
    )


def first_vector(states: States | Vectors, keep: Keep) -> Vectors:
    """Vector of the first real token; 0 for an example without any; (B, H) as it is.

    Args:
        states: (B, L, H), or (B, H) where the model has pooled already.
        keep: real tokens.

    Returns:
        (B, H).
    """
    if states.dim() == 2:
        vectors = states
    elif keep is None:
        vectors = states[:, 0]
    else:
        rows = torch.arange(states.shape[0], device=states.device)
        vectors = states[rows, keep.to(torch.uint8).argmax(dim=1)]
    return vectors if keep is None else vectors.masked_fill(~keep.any(dim=1, keepdim=True), 0.0)


def _states(features: Features, keep: Keep) -> States:
    return features[0]


def _squared_error(student: Features, keep: Keep, statistic: States) -> PerRow:
    error = torch.nn.functional.mse_loss(widen(student[0]), statistic, reduction="none")
    # Masked after the sum over entries: on (B, L) it costs nothing, on (B, L, H) a pass or two.
    per_token = error.sum(dim=-1)
    return (per_token if keep is None else per_token.masked_fill(~keep, 0.0)).sum(dim=1)


def _cosine_distance(student: Features, keep: Keep, statistic: States) -> PerRow:
    student_units, teacher_units = (
        unit(zero_padding(widen(states), keep)) for states in (student[0], statistic)
    )
    cosine = (student_units * teacher_units).sum(dim=-1)
    distance = 1.0 - cosine
    return (distance if keep is None else distance.masked_fill(~keep, 0.0)).sum(dim=1)


def _unit_first_vector(features: Features, keep: Keep) -> Vectors:
    return unit(widen(first_vector(features[0], keep)))


def _squared_distance_of_first(student: Features, keep: Keep, statistic: Vectors) -> PerRow:
    distance = (_unit_first_vector(student, keep) - statistic).square().sum(dim=-1)
    return distance if keep is None else distance.masked_fill(~keep.any(dim=1), 0.0)


def fsp(payload: FspPayload = "states") -> MatchLoss:
    """Squared error of the Gram matrices of features over two layers; also `gram`.

    ‖S₁ᵀS₂/n − T₁ᵀT₂/n‖² / H².

    Args:
        payload: "states" ships the real tokens of the teacher's layers, (k, n, H), k = 1 where both
            are one; "gram" ships T₁ᵀT₂/n, (H, H). The Gram matrix is the smaller only from
            k·n > H on: 768² numbers weigh as much as 768 tokens of width 768.

    Reference: A Gift from Knowledge Distillation (Yim et al., CVPR 2017); TextBrewer, `fsp_loss`.
    """
    ships_states = payload == "states"
    return MatchLoss(
        name="fsp",
        num_layers=2,
        axes=("layer", "token", "hidden") if ships_states else ("hidden", "hidden"),
        statistic=_distinct_layers if ships_states else _feature_gram,
        compare=_feature_gram_error_from_states if ships_states else _feature_gram_error,
        count=gram_entries,
        needs_same_size=True,
    )


def mmd(divisor: Divisor = "hidden") -> MatchLoss:
    """Squared error of the Gram matrices of tokens over two layers; also `nst`.

    Σ_{i,j real} ((S₁S₂ᵀ)_ij/d_s − (T₁T₂ᵀ)_ij/d_t)² / n². Ships (n, n); needs no projection.

    Args:
        divisor: "hidden" divides each side by its hidden size, as TextBrewer does where its
            adaptors give no mask, and as its published recipes are weighted for. "length"
            divides both sides by the padded length L, as TextBrewer does where they give one: the
            value falls as 1/L² with more padding, so jobs refuse it. Without a mask both mean
            "hidden".

    Reference: Like What You Like, 1707.01219; TextBrewer, `mmd_loss`.
    """
    return MatchLoss(
        name="mmd",
        num_layers=2,
        axes=("token", "token"),
        statistic=partial(_shipped_token_gram, divisor=divisor),
        compare=partial(_token_gram_error, divisor=divisor),
        count=pairs,
        padding_counts=divisor == "length",
    )


def _token_gram(features: Features, keep: Keep) -> TokenGram:
    first, second = (zero_padding(widen(states), keep) for states in features)
    with full_precision(first):
        return first @ second.transpose(1, 2)


def _shipped_token_gram(features: Features, keep: Keep, divisor: Divisor) -> TokenGram:
    gram = _token_gram(features, keep)
    # L isn't the example's own, so it may not enter what is shipped: the student divides by it.
    return gram if _divides_by_length(keep, divisor) else gram / features[1].shape[-1]


def _token_gram_error(
    student: Features, keep: Keep, statistic: TokenGram, divisor: Divisor
) -> PerRow:
    difference = _shipped_token_gram(student, keep, divisor) - statistic
    if keep is not None:
        difference = difference.masked_fill(~pair_mask(keep), 0.0)
    if _divides_by_length(keep, divisor):
        difference = difference / difference.shape[-1]
    return difference.square().sum(dim=(1, 2))


def _divides_by_length(keep: Keep, divisor: Divisor) -> bool:
    return keep is not None and divisor == "length"


def _feature_gram(features: Features, keep: Keep) -> FeatureGram:
    first, second = _scaled_states(features, keep)
    with full_precision(first):
        return first.transpose(1, 2) @ second


def _distinct_layers(features: Features, keep: Keep) -> LayerStates:
    first, second = features
    return torch.stack([first] if first is second else [first, second], dim=1)


def _feature_gram_error_from_states(
    student: Features, keep: Keep, statistic: LayerStates
) -> PerRow:
    """‖S₁ᵀS₂ − T₁ᵀT₂‖² without the H×H matrices where sentences are short.

    S₁ᵀS₂ − T₁ᵀT₂ = (S₁−T₁)ᵀS₂ + T₁ᵀ(S₂−T₂) = AᵀB with A = [S₁−T₁; T₁], B = [S₂; S₂−T₂], and
    ‖AᵀB‖² = ⟨AAᵀ, BBᵀ⟩, both (2L, 2L). Differences come first, so that no digits cancel when
    student and teacher are close.
    """
    teacher = (statistic[:, 0], statistic[:, -1])
    if 2 * statistic.shape[2] >= statistic.shape[3]:
        return _feature_gram_error(student, keep, _feature_gram(teacher, keep))
    first_S, second_S = _scaled_states(student, keep)
    first_T, second_T = _scaled_states(teacher, keep)
    left = torch.cat([first_S - first_T, first_T], dim=1)
    right = torch.cat([second_S, second_S - second_T], dim=1)
    with full_precision(left):
        return ((left @ left.transpose(1, 2)) * (right @ right.transpose(1, 2))).sum(dim=(1, 2))


def _feature_gram_error(student: Features, keep: Keep, statistic: FeatureGram) -> PerRow:
    # An example without a token has 0 on both sides.
    return (_feature_gram(student, keep) - statistic).square().sum(dim=(1, 2))


def _scaled_states(features: Features, keep: Keep) -> list[States]:
    """Zero padding, and divide the first layer by n, which divides the Gram matrix."""
    first, second = (zero_padding(widen(states), keep) for states in features)
    if keep is None:
        return [first / first.shape[1], second]
    num_tokens = keep.sum(dim=1).clamp_min(1).to(first.dtype)
    return [first / num_tokens[:, None, None], second]


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
) -> PerRow:
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
