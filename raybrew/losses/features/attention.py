"""Losses on attention maps: raw scores, as TextBrewer had, or transformers' probabilities.

Without a mask, entries ≤ −1e-3 are taken for padded scores, as in TextBrewer. The cross-entropies
take the softmax over real keys. TextBrewer takes it over all keys and only then leaves the padded
ones out: with probabilities, where a padded key holds 0 rather than −∞, its value moves with the
padding. `keys="all"` gives its numbers.
"""

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from raybrew.losses.features.counts import head_pairs, head_queries, pairs, tokens
from raybrew.losses.features.base import Features, MatchLoss
from raybrew.losses.features.numerics import Keep, pair_mask, widen

__all__ = [
    "attention_ce",
    "attention_ce_mean",
    "attention_mse",
    "attention_mse_sum",
    "minilm_attention",
]

Keys = Literal["all", "real"]
HeadMaps = Float[Tensor, "batch heads length length"]
Maps = Float[Tensor, "batch length length"]

_PADDED_SCORE = -1e-3
"""Entries at or below it are padding where no mask says so."""

_PROBABILITY_TOLERANCE = 0.02
"""How far from 1 a row of probabilities may sum after a trip through bfloat16."""


def attention_mse() -> MatchLoss:
    """Squared error of attention, head by head.

    Σ_{a,i,j real} (s_aij − t_aij)² / (A·n²). Ships (A, n, n).

    Reference: TextBrewer (2002.12620), `att_mse_loss`.
    """
    return MatchLoss(
        name="attention_mse",
        features=("attention",),
        num_layers=1,
        axes=("head", "token", "token"),
        statistic=_head_maps,
        compare=_squared_error_of_heads,
        count=head_pairs,
        needs_same_heads=True,
    )


def attention_mse_sum() -> MatchLoss:
    """Squared error of attention, heads summed first.

    Σ_{i,j real} (Σ_a s_aij − Σ_a t_aij)² / n². Ships (n, n).

    Reference: TextBrewer (2002.12620), `att_mse_sum_loss`.
    """
    return MatchLoss(
        name="attention_mse_sum",
        features=("attention",),
        num_layers=1,
        axes=("token", "token"),
        statistic=_summed_heads,
        compare=_squared_error_of_sums,
        count=pairs,
    )


def attention_ce(keys: Keys = "real") -> MatchLoss:
    """Cross-entropy of attention, head by head.

    −Σ_{a,i,j real} softmax(t_ai)_j · log_softmax(s_ai)_j / (A·n). Ships (A, n, n) scores.

    Args:
        keys: "real" takes the softmax over real keys. "all" takes it over padded keys too, as
            TextBrewer does: the value moves with the padding, so jobs refuse it. They agree where
            padded keys hold −1e4 or less.

    Reference: TextBrewer (2002.12620), `att_ce_loss`.
    """
    return MatchLoss(
        name="attention_ce",
        features=("attention",),
        num_layers=1,
        axes=("head", "token", "token"),
        statistic=_head_maps,
        compare=partial(_cross_entropy_of_heads, keys=keys),
        count=head_queries,
        needs_same_heads=True,
        restore=fill_padded_keys,
        padding_counts=keys == "all",
    )


def attention_ce_mean(keys: Keys = "real") -> MatchLoss:
    """Cross-entropy of attention, heads averaged first.

    −Σ_{i,j real} softmax(mean_a t_ai)_j · log_softmax(mean_a s_ai)_j / n. Ships (n, n) scores.

    Args:
        keys: as in `attention_ce`.

    Reference: TextBrewer (2002.12620), `att_ce_mean_loss`.
    """
    return MatchLoss(
        name="attention_ce_mean",
        features=("attention",),
        num_layers=1,
        axes=("token", "token"),
        statistic=_averaged_heads,
        compare=partial(_cross_entropy_of_means, keys=keys),
        count=tokens,
        restore=fill_padded_keys,
        padding_counts=keys == "all",
    )


def minilm_attention() -> MatchLoss:
    """KL between attention probabilities, head by head; MiniLM's first term.

    Σ_{a,i,j real} t_aij · (log t_aij − log s_aij) / (A·n). Ships (A, n, n). Takes probabilities.

    Reference: 2002.10957, eq. 4.
    """
    return MatchLoss(
        name="minilm_attention",
        features=("attention",),
        num_layers=1,
        axes=("head", "token", "token"),
        statistic=_head_maps,
        compare=_divergence_of_probabilities,
        count=head_queries,
        needs_same_heads=True,
    )


def fill_padded_keys(
    statistic: Float[Tensor, "batch *heads length length"], keep: Keep
) -> Float[Tensor, "batch *heads length length"]:
    """Give padded keys, which aren't shipped, the score that such a map holds there.

    A softmax over all keys asks for it: 0 in a map of probabilities (each row of real keys sums
    to 1 already), −∞ in one of raw scores.

    Args:
        statistic: teacher's maps, 0 at padding.
        keep: real tokens; None where nothing is padded.

    Returns:
        The same maps, −∞ at the padded keys of examples that hold raw scores.
    """
    if keep is None:
        return statistic
    heads = (1,) * (statistic.dim() - 3)
    is_query = keep.view(keep.shape[0], *heads, -1)
    row_error = (widen(statistic).sum(dim=-1) - 1.0).abs().masked_fill(~is_query, 0.0)
    over_map = tuple(range(1, statistic.dim()))
    is_probability = row_error.amax(dim=over_map[:-1]) <= _PROBABILITY_TOLERANCE
    is_probability &= statistic.amin(dim=over_map) > _PADDED_SCORE
    is_raw_padding = ~is_probability.unsqueeze(-1) & ~keep
    return statistic.masked_fill(is_raw_padding.view(keep.shape[0], *heads, 1, -1), -torch.inf)


def _head_maps(features: Features, keep: Keep) -> HeadMaps:
    maps = features[0]
    return maps if maps.dim() == 4 else maps.unsqueeze(1)


def _summed_heads(features: Features, keep: Keep) -> Maps:
    maps = widen(features[0])
    return maps.sum(dim=1) if maps.dim() == 4 else maps


def _averaged_heads(features: Features, keep: Keep) -> Maps:
    maps = widen(features[0])
    return maps.mean(dim=1) if maps.dim() == 4 else maps


def _squared_error_of_heads(student: Features, keep: Keep, statistic: HeadMaps) -> Tensor:
    return _squared_error(_head_maps(student, keep), statistic, keep)


def _squared_error_of_sums(student: Features, keep: Keep, statistic: Maps) -> Tensor:
    maps, target = _summed_heads(student, keep), statistic
    return _squared_error(maps.unsqueeze(1), target.unsqueeze(1), keep)


def _squared_error(student: HeadMaps, teacher: HeadMaps, keep: Keep) -> Float[Tensor, " batch"]:
    student = widen(student)
    if keep is None:
        student = student.masked_fill(student <= _PADDED_SCORE, 0.0)
        teacher = teacher.masked_fill(teacher <= _PADDED_SCORE, 0.0)
        return (student - teacher).square().sum(dim=(1, 2, 3))
    is_padding = ~pair_mask(keep).unsqueeze(1)
    # −∞ on both sides makes NaN here, and the filling stops its gradient.
    difference = (student - teacher).masked_fill(is_padding, 0.0)
    return difference.square().sum(dim=(1, 2, 3))


def _cross_entropy_of_heads(
    student: Features, keep: Keep, statistic: HeadMaps, keys: Keys
) -> Tensor:
    return _cross_entropy(_head_maps(student, keep), statistic, keep, keys)


def _cross_entropy_of_means(student: Features, keep: Keep, statistic: Maps, keys: Keys) -> Tensor:
    maps = _averaged_heads(student, keep)
    return _cross_entropy(maps.unsqueeze(1), statistic.unsqueeze(1), keep, keys)


def _cross_entropy(
    student: HeadMaps, teacher: HeadMaps, keep: Keep, keys: Keys
) -> Float[Tensor, " batch"]:
    student = widen(student)
    if keep is None:
        counts = teacher > _PADDED_SCORE
    else:
        counts = pair_mask(keep).unsqueeze(1)
        is_query = keep[:, None, :, None]
        if keys == "real":
            is_padded_key = (~keep)[:, None, None, :] & is_query
            student = student.masked_fill(is_padded_key, -torch.inf)
            teacher = teacher.masked_fill(is_padded_key, -torch.inf)
        # A padded query may see no key at all: the softmax of −∞ alone is NaN.
        student = torch.where(is_query, student, 0.0)
    probabilities = torch.softmax(teacher, dim=-1)
    # 0·log 0 is 0: a key that neither side sees holds −∞ on both. NaN isn't above 0 either.
    counts = counts & (probabilities > 0)
    probabilities = torch.where(counts, probabilities, 0.0)
    log_probs = torch.log_softmax(student, dim=-1)
    return -torch.where(counts, probabilities * log_probs, 0.0).sum(dim=(1, 2, 3))


def _divergence_of_probabilities(
    student: Features, keep: Keep, statistic: HeadMaps
) -> Float[Tensor, " batch"]:
    student_maps, teacher_maps = widen(_head_maps(student, keep)), statistic
    if keep is not None:
        is_padding = ~pair_mask(keep).unsqueeze(1)
        student_maps = student_maps.masked_fill(is_padding, 0.0)
        teacher_maps = teacher_maps.masked_fill(is_padding, 0.0)
    smallest = torch.finfo(student_maps.dtype).tiny
    log_student = student_maps.clamp_min(smallest).log()
    log_teacher = teacher_maps.clamp_min(smallest).log()
    return (teacher_maps * (log_teacher - log_student)).sum(dim=(1, 2, 3))
