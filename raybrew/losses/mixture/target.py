"""One target out of several teachers."""

import math

from jaxtyping import Float
from torch import Tensor

from raybrew.errors import ConfigError
from raybrew.losses.mixture.choice import Mixture
from raybrew.losses.soft.log_space import Temperature, log_probs, promoted

__all__ = ["combine"]


def combine(
    mixture: Mixture,
    teacher_logits: Float[Tensor, " teachers *rows classes"],
    weights: Float[Tensor, " teachers *rows"],
    temperature: Temperature,
) -> Float[Tensor, "*rows classes"]:
    """Make one target of all teachers.

    mean_logits: Σ_k w_k t_k.  mean_probs: T log Σ_k w_k softmax(t_k / T), whose softmax at T is
    the mean of the probabilities; it is a target for losses that a shift of all logits leaves
    alone, so not for mse and bce.

    Args:
        mixture: mean_logits or mean_probs.
        teacher_logits: raw; an entry under weight 0 may be anything.
        weights: of `teacher_weights`.
        temperature: a number, or one for each row.

    Returns:
        (*rows, classes), raw logits of the target, in float32 at least.

    Raises:
        ConfigError: with sum_losses there is no one target.
    """
    if mixture.sums_losses:
        raise ConfigError(
            "sum_losses has no single target: compute the loss of each teacher, and weigh its rows."
        )
    logits = teacher_logits.to(promoted(teacher_logits, weights))
    shares = weights.to(logits.dtype).unsqueeze(-1)
    if mixture.combination == "mean_logits":
        # 0 · −inf is NaN, and what an absent teacher left behind is no number to multiply.
        return (shares * logits.masked_fill(shares == 0, 0.0)).sum(dim=0)
    row_temperature = temperature
    if isinstance(temperature, Tensor) and temperature.dim() > 0:
        row_temperature = temperature.to(logits.dtype).unsqueeze(-1)
        temperature = temperature.expand(logits.shape[:-1])
    terms = log_probs(logits, temperature).masked_fill(shares == 0, -math.inf) + shares.log()
    return row_temperature * terms.logsumexp(dim=0)
