"""Losses that compare hidden states vector by vector."""

import torch
from jaxtyping import Float
from torch import Tensor

from raybrew.losses.features.counts import examples, token_entries, tokens
from raybrew.losses.features.base import Features, MatchLoss
from raybrew.losses.features.numerics import Keep, unit, widen, zero_padding

__all__ = ["cos", "first_vector", "hidden_mse", "pkd"]

States = Float[Tensor, "batch length hidden"]
Vectors = Float[Tensor, "batch hidden"]


def hidden_mse() -> MatchLoss:
    """Squared error of hidden states at real tokens.

    Σ_{l real} ‖s_l − t_l‖² / (n·H). Ships (n, H).

    Reference: TextBrewer (2002.12620), `hid_mse_loss`.
    """
    return MatchLoss(
        name="hidden_mse",
        features=("hidden",),
        num_layers=1,
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
        features=("hidden",),
        num_layers=1,
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
        features=("hidden",),
        num_layers=1,
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


def _squared_error(student: Features, keep: Keep, statistic: States) -> Float[Tensor, " batch"]:
    error = torch.nn.functional.mse_loss(widen(student[0]), statistic, reduction="none")
    # Masked after the sum over entries: on (B, L) it costs nothing, on (B, L, H) a pass or two.
    per_token = error.sum(dim=-1)
    return (per_token if keep is None else per_token.masked_fill(~keep, 0.0)).sum(dim=1)


def _cosine_distance(student: Features, keep: Keep, statistic: States) -> Float[Tensor, " batch"]:
    student_units, teacher_units = (
        unit(zero_padding(widen(states), keep)) for states in (student[0], statistic)
    )
    cosine = (student_units * teacher_units).sum(dim=-1)
    distance = 1.0 - cosine
    return (distance if keep is None else distance.masked_fill(~keep, 0.0)).sum(dim=1)


def _unit_first_vector(features: Features, keep: Keep) -> Vectors:
    return unit(widen(first_vector(features[0], keep)))


def _squared_distance_of_first(
    student: Features, keep: Keep, statistic: Vectors
) -> Float[Tensor, " batch"]:
    distance = (_unit_first_vector(student, keep) - statistic).square().sum(dim=-1)
    return distance if keep is None else distance.masked_fill(~keep.any(dim=1), 0.0)
