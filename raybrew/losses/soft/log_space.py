"""Log-probabilities and the few operations on them that stay finite where probabilities are 0."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Temperature", "expectation", "log_mixture", "log_probs", "promoted", "tempered"]

Temperature = float | int | Float[Tensor, "*rows"] | Float[Tensor, ""]

# Stands for log 0 where two of them would meet in a difference; far below any log-probability,
# far above what float32 can't hold.
LOG_ZERO = -1e30


def promoted(*tensors: Float[Tensor, "..."]) -> torch.dtype:
    """Choose the dtype to compute in: the widest of the arguments, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def tempered(
    logits: Float[Tensor, "*rows classes"], temperature: Temperature, dtype: torch.dtype
) -> Float[Tensor, "*rows classes"]:
    """Divide raw logits by the temperature, z / T, in the given dtype.

    Args:
        logits: (*rows, classes), raw.
        temperature: a number, or one for each row (*rows).
        dtype: what to compute in.

    Returns:
        z / T.
    """
    if isinstance(temperature, Tensor):
        temperature = temperature.to(dtype)
        if temperature.dim() > 0:
            temperature = temperature.unsqueeze(-1)
    return logits.to(dtype) / temperature


def log_probs(
    logits: Float[Tensor, "*rows classes"],
    temperature: Temperature,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*rows classes"]:
    """Take log softmax(z / T).

    Args:
        logits: (*rows, classes), raw; −inf marks a class that is masked out.
        temperature: a number, or one for each row.
        dtype: what to compute in; by default the logits' own, float32 at least.

    Returns:
        Log-probabilities; −inf at masked classes.
    """
    return tempered(logits, temperature, dtype or promoted(logits)).log_softmax(dim=-1)


def expectation(
    weights: Float[Tensor, "*rows classes"], values: Float[Tensor, "*rows classes"]
) -> Float[Tensor, "*rows"]:
    """Sum w_c v_c over classes, where a class of weight 0 adds 0 even if its value is infinite.

    Args:
        weights: (*rows, classes), probabilities.
        values: (*rows, classes); may be ±inf or NaN where the weight is 0.

    Returns:
        (*rows). An infinite value under a positive weight stays infinite.
    """
    # Filling the value, not the product, is what keeps the gradient free of 0·inf.
    return (weights * values.masked_fill(weights == 0, 0.0)).sum(dim=-1)


def log_mixture(
    first_log_probs: Float[Tensor, "*rows classes"],
    second_log_probs: Float[Tensor, "*rows classes"],
    first_share: float,
) -> Float[Tensor, "*rows classes"]:
    """Take log(λ p + (1 − λ) q) from log p and log q.

    Args:
        first_log_probs: log p.
        second_log_probs: log q.
        first_share: λ, strictly between 0 and 1.

    Returns:
        Log-probabilities of the mixture; a huge negative number where both are 0.
    """
    # One −inf is no trouble to logaddexp; two are, in its gradient.
    return torch.logaddexp(
        first_log_probs + math.log(first_share),
        second_log_probs.clamp(min=LOG_ZERO) + math.log1p(-first_share),
    )
