"""Match losses on relations: attention maps, relations between tokens or between examples.

Attention maps are raw scores, as TextBrewer has them, or the probabilities of transformers. Without
a mask, entries ≤ −1e-3 are taken for padded scores, as in TextBrewer. The cross-entropies take the
softmax over real keys. TextBrewer takes it over all keys and only then leaves the padded ones out:
with probabilities, where a padded key holds 0 rather than −∞, its value moves with the padding.
`keys="all"` gives its numbers.

Losses between examples (rkd, sp, cka) need one vector per example, which is what is shipped. By
default it is the mean over real tokens, which every model has; `pooling="first"` takes the first
token instead, for encoders trained to gather the sentence there. The examples compared are those of
one micro-batch on one rank, so these values change with the batch size, as in their papers.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from raybrew.losses.hidden import first_vector
from raybrew.losses.match_loss import (
    Features,
    MatchLoss,
    head_pairs,
    head_queries,
    pairs,
    pairs_of_examples,
    tokens,
    triplets_of_examples,
    two_examples,
)
from raybrew.losses.numerics import Keep, full_precision, pair_mask, unit, widen, zero_padding

Keys = Literal["all", "real"]
HeadMaps = Float[Tensor, "batch heads length length"]
Maps = Float[Tensor, "batch length length"]
Pooling = Literal["mean", "first"]
Vectors = Float[Tensor, "batch hidden"]
TeacherVectors = Float[Tensor, "batch teacher_hidden"]
Present = Bool[Tensor, " batch"]
PerRow = Float[Tensor, " batch"]
Relations = Float[Tensor, "batch heads length length"]
MapsOf = Callable[[Features, Keep], Tensor]
MapError = Callable[[HeadMaps, HeadMaps, Keep], PerRow]

_PADDED_SCORE = -1e-3
"""Entries at or below it are padding where there is no mask."""

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
        axes=("head", "token", "token"),
        statistic=_head_maps,
        compare=partial(_compare_maps, statistic_of=_head_maps, error=_squared_error),
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
        axes=("token", "token"),
        statistic=_summed_heads,
        compare=partial(_compare_maps, statistic_of=_summed_heads, error=_squared_error),
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
        axes=("head", "token", "token"),
        statistic=_head_maps,
        compare=partial(
            _compare_maps, statistic_of=_head_maps, error=partial(_cross_entropy, keys=keys)
        ),
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
        axes=("token", "token"),
        statistic=_averaged_heads,
        compare=partial(
            _compare_maps, statistic_of=_averaged_heads, error=partial(_cross_entropy, keys=keys)
        ),
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
        axes=("head", "token", "token"),
        statistic=_head_maps,
        compare=partial(_compare_maps, statistic_of=_head_maps, error=_divergence_of_probabilities),
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


def _compare_maps(
    student: Features, keep: Keep, statistic: Tensor, statistic_of: MapsOf, error: MapError
) -> PerRow:
    maps = statistic_of(student, keep)
    if maps.dim() == 3:  # heads are joined
        maps, statistic = maps.unsqueeze(1), statistic.unsqueeze(1)
    return error(widen(maps), statistic, keep)


def _squared_error(student: HeadMaps, teacher: HeadMaps, keep: Keep) -> PerRow:
    if keep is None:
        student = student.masked_fill(student <= _PADDED_SCORE, 0.0)
        teacher = teacher.masked_fill(teacher <= _PADDED_SCORE, 0.0)
        return (student - teacher).square().sum(dim=(1, 2, 3))
    is_padding = ~pair_mask(keep).unsqueeze(1)
    # −∞ on both sides makes NaN here, and the filling stops its gradient.
    difference = (student - teacher).masked_fill(is_padding, 0.0)
    return difference.square().sum(dim=(1, 2, 3))


def _cross_entropy(student: HeadMaps, teacher: HeadMaps, keep: Keep, keys: Keys) -> PerRow:
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


def _divergence_of_probabilities(student: HeadMaps, teacher: HeadMaps, keep: Keep) -> PerRow:
    if keep is not None:
        is_padding = ~pair_mask(keep).unsqueeze(1)
        student = student.masked_fill(is_padding, 0.0)
        teacher = teacher.masked_fill(is_padding, 0.0)
    smallest = torch.finfo(student.dtype).tiny
    log_student = student.clamp_min(smallest).log()
    log_teacher = teacher.clamp_min(smallest).log()
    return (teacher * (log_teacher - log_student)).sum(dim=(1, 2, 3))


def attention_transfer() -> MatchLoss:
    """Squared distance of normalised maps of activation energy over tokens.

    Σ_{l real} (q_l(s) − q_l(t))² / n,  q_l(h) = ‖h_l‖² / √Σ_{l' real} ‖h_l'‖⁴. Ships (n,).

    Reference: Paying More Attention to Attention, 1612.03928, with p = 2.
    """
    return MatchLoss(
        name="attention_transfer",
        axes=("token",),
        statistic=_energy_map,
        compare=_energy_map_error,
        count=tokens,
    )


def rkd_distance(pooling: Pooling = "mean") -> MatchLoss:
    """Huber loss of distances between examples, each side in units of its own mean distance.

    Σ_{i,j} huber(‖s_i−s_j‖/μ_s − ‖t_i−t_j‖/μ_t) / N². Ships (H,).

    Reference: Relational Knowledge Distillation, 1904.05068, eq. 4-6.
    """
    return _between_examples("rkd_distance", pooling, _distance_error, pairs_of_examples)


def rkd_angle(pooling: Pooling = "mean") -> MatchLoss:
    """Huber loss of the cosines of angles that triplets of examples span.

    Σ_{i,j,k} huber(cos∠(s_j,s_i,s_k) − cos∠(t_j,t_i,t_k)) / N³, i the corner. Ships (H,).

    Reference: Relational Knowledge Distillation, 1904.05068, eq. 7-9.
    """
    return _between_examples("rkd_angle", pooling, _angle_error, triplets_of_examples)


def sp(pooling: Pooling = "mean") -> MatchLoss:
    """Squared error of row-normalised similarities between examples.

    ‖Ĝ_s − Ĝ_t‖² / N²,  G = V Vᵀ with rows divided by their norm. Ships (H,).

    Reference: Similarity-Preserving Knowledge Distillation, 1907.09682, eq. 1-4.
    """
    return _between_examples("sp", pooling, _similarity_error, pairs_of_examples)


def cka(pooling: Pooling = "mean") -> MatchLoss:
    """1 − linear centred kernel alignment over the batch; 1 where a side doesn't vary.

    1 − ⟨K, L⟩ / (‖K‖‖L‖),  K, L the centred Gram matrices of examples. Ships (H,).

    Reference: Similarity of Neural Network Representations Revisited, 1905.00414.
    """
    return _between_examples("cka", pooling, _alignment_loss, two_examples)


def minilm_value_relation() -> MatchLoss:
    """KL of value relations, head by head.

    Σ_{a,i real} KL(R_t ‖ R_s) / (A·n),  R = softmax(V Vᵀ/√d) over real keys. Ships (A, n, n).

    Reference: MiniLM, 2002.10957, eq. 5-7.
    """
    return MatchLoss(
        name="minilm_value_relation",
        features=("value",),
        axes=("head", "token", "token"),
        statistic=partial(_relations, num_heads=None),
        compare=partial(_relation_divergence, num_heads=None),
        count=head_queries,
        needs_same_heads=True,
    )


def minilmv2_relation(num_relation_heads: Annotated[int, Field(gt=0)] = 48) -> MatchLoss:
    """KL of self-attention relations over heads cut again, so that head counts may differ.

    Σ_{a,i real} KL(R_t ‖ R_s) / (A_r·n),  R = softmax(X Xᵀ/√d_r), X the queries, keys or values
    of all heads side by side, cut into A_r pieces of width d_r. Ships (A_r, n, n).

    Args:
        num_relation_heads: A_r; divides the hidden sizes of both sides.

    Reference: MiniLMv2, 2012.15828, eq. 3-6.
    """
    return MatchLoss(
        name="minilmv2_relation",
        features=("query", "key", "value", "hidden"),
        axes=("head", "token", "token"),
        statistic=partial(_relations, num_heads=num_relation_heads),
        compare=partial(_relation_divergence, num_heads=num_relation_heads),
        count=head_queries,
        relation_heads=num_relation_heads,
    )


def _between_examples(name: str, pooling: Pooling, error, count) -> MatchLoss:
    return MatchLoss(
        name=name,
        axes=("hidden",),
        statistic=partial(_pooled, pooling=pooling),
        compare=partial(_compare_examples, pooling=pooling, error=error),
        count=count,
        batch_level=True,
    )


def _compare_examples(
    student: Features, keep: Keep, statistic: Vectors, pooling: Pooling, error
) -> PerRow:
    vectors = _pooled(student, keep, pooling)
    present = vectors.new_ones(vectors.shape[0], dtype=torch.bool)
    if keep is not None:
        present = keep.any(dim=1)
    teacher = statistic.masked_fill(~present.unsqueeze(1), 0.0)
    with full_precision(vectors):
        return error(vectors, teacher, present)


def _pooled(features: Features, keep: Keep, pooling: Pooling) -> Vectors:
    states = widen(features[0])
    if pooling == "first" or states.dim() == 2:
        return first_vector(states, keep)
    if keep is None:
        return states.mean(dim=1)
    num_tokens = keep.sum(dim=1, keepdim=True).clamp_min(1).to(states.dtype)
    return zero_padding(states, keep).sum(dim=1) / num_tokens


def _distance_error(student: Vectors, teacher: TeacherVectors, present: Present) -> PerRow:
    is_pair = present.unsqueeze(0) & present.unsqueeze(1)
    is_pair &= ~torch.eye(present.shape[0], dtype=torch.bool, device=present.device)
    error = torch.nn.functional.smooth_l1_loss(
        _relative_distances(student, is_pair),
        _relative_distances(teacher, is_pair),
        reduction="none",
    )
    return error.sum(dim=1)


def _relative_distances(
    vectors: Vectors, is_pair: Bool[Tensor, "batch batch"]
) -> Float[Tensor, "batch batch"]:
    # The product form of cdist loses digits between neighbours; its gradient at 0 is 0 either way.
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances.masked_fill(~is_pair, 0.0)
    mean = distances.sum() / is_pair.sum().clamp_min(1)
    return distances / torch.where(mean > 0, mean, torch.ones_like(mean))


def _angle_error(student: Vectors, teacher: TeacherVectors, present: Present) -> PerRow:
    is_triplet = present[:, None, None] & present[None, :, None] & present[None, None, :]
    error = torch.nn.functional.smooth_l1_loss(
        _cosines_at_corners(student), _cosines_at_corners(teacher), reduction="none"
    )
    return error.masked_fill(~is_triplet, 0.0).sum(dim=(1, 2))


def _cosines_at_corners(vectors: Vectors) -> Float[Tensor, "batch batch batch"]:
    directions = unit(vectors.unsqueeze(0) - vectors.unsqueeze(1))
    return directions @ directions.transpose(1, 2)


def _similarity_error(student: Vectors, teacher: TeacherVectors, present: Present) -> PerRow:
    # Absent examples are zero vectors: their rows and columns are 0 on both sides.
    difference = unit(student @ student.T) - unit(teacher @ teacher.T)
    return difference.square().sum(dim=1)


def _alignment_loss(student: Vectors, teacher: TeacherVectors, present: Present) -> PerRow:
    gram_directions = [_direction_of_centred_gram(v, present) for v in (student, teacher)]
    alignment = (gram_directions[0] * gram_directions[1]).sum()
    counts = present & (present.sum() > 1)
    return (1.0 - alignment) * counts.to(student.dtype)


def _direction_of_centred_gram(
    vectors: Vectors, present: Present
) -> Float[Tensor, " batch_squared"]:
    mean = vectors.sum(dim=0) / present.sum().clamp_min(1)
    centred = (vectors - mean).masked_fill(~present.unsqueeze(1), 0.0)
    return unit((centred @ centred.T).flatten())


def _energy_map(features: Features, keep: Keep) -> Float[Tensor, "batch length"]:
    return unit(zero_padding(widen(features[0]), keep).square().sum(dim=-1))


def _energy_map_error(
    student: Features, keep: Keep, statistic: Float[Tensor, "batch length"]
) -> PerRow:
    return (_energy_map(student, keep) - statistic).square().sum(dim=1)


def _relations(features: Features, keep: Keep, num_heads: int | None) -> Relations:
    return _relation_logits(features, keep, num_heads).softmax(dim=-1)


def _relation_logits(features: Features, keep: Keep, num_heads: int | None) -> Relations:
    vectors = _cut_heads(widen(features[0]), num_heads)
    if keep is not None:
        vectors = vectors.masked_fill(~keep[:, None, :, None], 0.0)
    with full_precision(vectors):
        logits = vectors @ vectors.transpose(2, 3) / vectors.shape[-1] ** 0.5
    if keep is None:
        return logits
    # Padded queries keep finite logits: a row of −∞ alone has no softmax.
    is_padded_key = (~keep)[:, None, None, :] & keep[:, None, :, None]
    return logits.masked_fill(is_padded_key, -torch.inf)


def _cut_heads(
    vectors: Float[Tensor, "batch ..."], num_heads: int | None
) -> Float[Tensor, "batch heads length head_size"]:
    if num_heads is None:
        return vectors
    if vectors.dim() == 4:
        vectors = vectors.transpose(1, 2).flatten(start_dim=2)
    return vectors.unflatten(2, (num_heads, -1)).transpose(1, 2)


def _relation_divergence(
    student: Features, keep: Keep, statistic: Relations, num_heads: int | None
) -> PerRow:
    teacher = statistic
    log_student = _relation_logits(student, keep, num_heads).log_softmax(dim=-1)
    counts = teacher > 0
    if keep is not None:
        counts = counts & pair_mask(keep).unsqueeze(1)
    log_ratio = teacher.clamp_min(torch.finfo(teacher.dtype).tiny).log() - log_student
    return torch.where(counts, teacher * log_ratio, 0.0).sum(dim=(1, 2, 3))
