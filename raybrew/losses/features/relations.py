"""Losses on Gram matrices of two layers: between features (fsp) and between tokens (mmd)."""

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from raybrew.losses.features.counts import gram_entries, pairs
from raybrew.losses.features.base import Features, MatchLoss
from raybrew.losses.features.numerics import Keep, full_precision, pair_mask, widen, zero_padding

__all__ = ["fsp", "mmd"]

Divisor = Literal["length", "hidden"]
FspPayload = Literal["states", "gram"]
TokenGram = Float[Tensor, "batch length length"]
FeatureGram = Float[Tensor, "batch hidden hidden"]


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
        features=("hidden",),
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
        features=("hidden",),
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
) -> Float[Tensor, " batch"]:
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


def _distinct_layers(features: Features, keep: Keep) -> Float[Tensor, "batch layers length hidden"]:
    first, second = features
    return torch.stack([first] if first is second else [first, second], dim=1)


def _feature_gram_error_from_states(
    student: Features, keep: Keep, statistic: Float[Tensor, "batch layers length hidden"]
) -> Float[Tensor, " batch"]:
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


def _feature_gram_error(
    student: Features, keep: Keep, statistic: FeatureGram
) -> Float[Tensor, " batch"]:
    # An example without a token has 0 on both sides.
    return (_feature_gram(student, keep) - statistic).square().sum(dim=(1, 2))


def _scaled_states(features: Features, keep: Keep) -> list[Float[Tensor, "batch length hidden"]]:
    """Zero padding, and divide the first layer by n, which divides the Gram matrix."""
    first, second = (zero_padding(widen(states), keep) for states in features)
    if keep is None:
        return [first / first.shape[1], second]
    num_tokens = keep.sum(dim=1).clamp_min(1).to(first.dtype)
    return [first / num_tokens[:, None, None], second]
