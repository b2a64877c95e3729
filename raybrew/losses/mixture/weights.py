"""How much each teacher counts in each row.

fixed: the static weights.  softmax: softmax_k(α score_k).
ca_mkd: (1 − e^{CE_k} / Σ_j e^{CE_j}) / (K − 1), arXiv:2201.00007.
mt_bert: 1 / (1 + CE_k), arXiv:2106.01023.
min_ce (arXiv:2401.10491), random, route: 1 for one teacher, picked by its CE, by chance in
proportion to the static weights, or by the data.

They sum to 1 in each row, except with sum_losses: there `fixed` and `mt_bert` are taken as they
are. CE, entropy and probability are at T = 1. Rows of negative label, where a weighting needs a
label, take the static weights, scaled to the sum 1. Only `fixed`, `random` and those rows look at
the static weights.

Where a teacher has no answer, the others make up for it: the weights of the row keep their sum
(for `mt_bert` under sum_losses, whose sum is unknown, they are scaled by K / available).

A weighting of the user's own is scaled to the sum 1, and under sum_losses taken as it is.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Int64, UInt64
from torch import Tensor

from raybrew.errors import ConfigError, LabelError
from raybrew.losses.mixture.choice import Mixture
from raybrew.losses.mixture.rules import BUILT_IN, Rows, rule_of
from raybrew.losses.soft.log_space import promoted

__all__ = ["teacher_weights"]


@torch.no_grad()
def teacher_weights(
    mixture: Mixture,
    teacher_logits: Float[Tensor, " teachers *rows classes"],
    static_weights: Sequence[float | int] | Float[Tensor, " teachers"],
    labels: Int64[Tensor, "*rows"] | None = None,
    *,
    route: Int[Tensor, "*rows"] | None = None,
    row_keys: UInt64[Tensor, "*rows"] | Int64[Tensor, "*rows"] | None = None,
    epoch: int = 0,
    available: Bool[Tensor, " teachers *rows"] | None = None,
) -> Float[Tensor, " teachers *rows"]:
    """Weigh each teacher in each row; without gradient.

    What each weighting does is said at the top of this module.

    Args:
        mixture: what to do.
        teacher_logits: raw; with fixed, random or route any stack of that shape will do, e.g.
            top-k values.
        static_weights: one for each teacher, ≥ 0.
        labels: true classes; negative = none.
        route: the teacher's index in each row.
        row_keys: the example's key in each row; the pick is a function of seed, epoch and key.
        epoch: counts from 0.
        available: False where a teacher has no answer for the row; the others make up for it.

    Returns:
        (teachers, *rows), in float32 at least.

    Raises:
        ConfigError: an input that the weighting needs is missing, or weights that can't be.
        LabelError: a row without any teacher.
    """
    shape = teacher_logits.shape[:-1]
    nobody = teacher_logits.new_zeros(shape[1:], dtype=torch.int64)
    rows = Rows(
        score=mixture.score,
        alpha=mixture.alpha,
        seed=mixture.seed,
        logits=teacher_logits,
        static=_static(static_weights, teacher_logits),
        labels=_needed(labels, nobody, mixture.needs_labels, mixture, "the true labels"),
        route=_needed(route, nobody, mixture.needs_route, mixture, "the column of teachers"),
        row_keys=_needed(row_keys, nobody, mixture.needs_row_keys, mixture, "the row keys"),
        epoch=epoch,
        available=torch.ones_like(nobody, dtype=torch.bool).expand(shape)
        if available is None
        else available,
    )
    weights = rule_of(mixture.weighting).function(rows).masked_fill(~rows.available, 0.0)
    own = mixture.weighting not in BUILT_IN
    if mixture.weighting == "fixed":
        total = rows.static.sum() if mixture.sums_losses else 1.0
        weights = weights / weights.sum(dim=0) * total
    elif not mixture.sums_losses:
        weights = weights / weights.sum(dim=0)
    if mixture.needs_labels:
        shares = rows.static.expand(shape).masked_fill(~rows.available, 0.0)
        weights = torch.where(rows.labels < 0, shares / shares.sum(dim=0), weights)
    # Reading a tensor back waits for the device, so it is done only where rows can lack teachers.
    if available is not None or mixture.needs_route or own:
        _require_a_teacher(weights, mixture)
    return weights


def _static(static_weights: Sequence[float | int] | Tensor, logits: Tensor) -> Tensor:
    """Check the static weights; (K, 1, …) to go with the rows."""
    values = [float(weight) for weight in static_weights]
    fit = len(values) == len(logits) and all(math.isfinite(value) for value in values)
    if not fit or min(values) < 0 or sum(values) <= 0:
        raise ConfigError(
            f"Weights of {len(logits)} teachers: expected one number ≥ 0 for each and a sum > 0, "
            f"got {values}."
        )
    column = torch.tensor(values, dtype=promoted(logits), device=logits.device)
    return column.view(-1, *[1] * (logits.dim() - 2))


def _needed(
    given: Tensor | None, otherwise: Tensor, needed: bool, mixture: Mixture, what: str
) -> Tensor:
    """Take an input, or a stand-in that nobody reads."""
    if needed and given is None:
        raise ConfigError(
            f"Teachers weighted by {mixture.weighting!r} need {what}, and none came. Give it, or "
            "take another mixture, e.g. mean_logits."
        )
    return otherwise if given is None else given


def _require_a_teacher(weights: Tensor, mixture: Mixture) -> None:
    """Refuse rows in which no weight is left, rather than make up a target."""
    total = weights.sum(dim=0)
    bad = ~(total > 0)
    if bad.any():
        where = bad.nonzero()[:5].tolist()
        raise LabelError(
            f"No teacher for {int(bad.sum())} of {bad.numel()} rows (first at {where}), with the "
            f"weighting {mixture.weighting!r}. Each row needs an available teacher of positive "
            f"weight, and a route in 0..{len(weights) - 1}: look at the dropped teachers, and at "
            "the route column."
        )
