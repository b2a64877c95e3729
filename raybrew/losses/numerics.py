"""Numerics that the losses share: log-probabilities, top-k buckets, masks, precision."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from raybrew.errors import ConfigError

# Log-probabilities, and operations on them that stay finite where probabilities are 0.

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
    """Divide raw logits by the temperature, a number or one per row: z / T, in the given dtype."""
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
    """Return log softmax(z / T).

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
    """Return log(λ p + (1 − λ) q) from log p and log q.

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


def present_classes(
    student_logits: Float[Tensor, "*rows classes"], teacher_logits: Float[Tensor, "*rows classes"]
) -> Bool[Tensor, "*rows classes"]:
    """Mark the classes that aren't −inf on both sides."""
    return ~(student_logits.isneginf() & teacher_logits.isneginf())


def class_mean(
    values: Float[Tensor, "*rows classes"], present: Bool[Tensor, "*rows classes"], power: int = 1
) -> Float[Tensor, "*rows"]:
    """Average values^power over the classes that are present.

    Args:
        values: (*rows, classes); may be NaN where the class is absent.
        present: which classes count.
        power: applied after the mask, so that no NaN reaches the gradient.

    Returns:
        (*rows); 0 where no class is present.
    """
    kept = values.masked_fill(~present, 0.0) ** power
    return kept.sum(dim=-1) / present.sum(dim=-1).clamp(min=1)


# Large vocabularies: the k largest logits, their indices, and the tail as one more bucket.
#
# teacher  values, indices, logsumexp ──► log p of k classes + log of the rest's mass ──┐
# student  all logits ──► gathered at the indices + logsumexp of the rest ──────────────┴─► k + 1


@dataclass(frozen=True, eq=False)
class TopK:
    """A teacher's k largest raw logits in each row, with what the others add up to.

    Attributes:
        values: (*rows, k) raw logits, any order.
        indices: (*rows, k) int64, their classes, distinct within a row.
        logsumexp: (*rows), log Σ_c exp(z_c / T) over all classes at the T in use; or a mapping
            from each T that may be asked for to it. To be computed from the values as they are
            stored: the tail's mass is a difference, and rounding the values afterwards moves it.
    """

    values: Float[Tensor, "*rows k"]
    indices: Int64[Tensor, "*rows k"]
    logsumexp: Mapping[float, Float[Tensor, "*rows"]] | Float[Tensor, "*rows"]

    def logsumexp_at(self, temperature: float | int | Tensor) -> Tensor:
        """Look up the logsumexp at a temperature.

        Raises:
            ConfigError: it wasn't kept at this temperature.
        """
        if isinstance(self.logsumexp, Tensor):
            return self.logsumexp
        kept = sorted(self.logsumexp)
        if isinstance(temperature, Tensor) and temperature.dim() > 0:
            raise ConfigError(
                "A temperature for each row (from a temperature scheduler) meets top-k logits "
                f"whose logsumexp is kept at T = {kept} only. Take a constant temperature, or keep "
                "dense logits."
            )
        wanted = float(temperature)
        for known in kept:
            if math.isclose(known, wanted, rel_tol=1e-9):
                return self.logsumexp[known]
        raise ConfigError(
            f"Top-k logits have their logsumexp at T = {kept}, and T = {wanted} is asked for. "
            "Add it to the temperatures of the labels, and label again."
        )

    def take(self, rows: Tensor) -> "TopK":
        """Take rows by index or by mask; the logsumexp is kept by temperature."""
        assert not isinstance(self.logsumexp, Tensor)
        sums = {temperature: each[rows] for temperature, each in self.logsumexp.items()}
        return TopK(self.values[rows], self.indices[rows], sums)


def bucket_log_probs(
    student_logits: Float[Tensor, "*rows classes"], teacher: TopK, temperature: Temperature
) -> tuple[Float[Tensor, "*rows buckets"], Float[Tensor, "*rows buckets"]]:
    """Reduce both sides to k + 1 buckets: the teacher's k classes, and all others as one.

    log p_tail = lse + log(1 − exp(lse_k − lse));  log q_tail = logsumexp of the student's others.

    Args:
        student_logits: (*rows, classes), raw.
        teacher: the k largest.
        temperature: a number, or one for each row where the teacher's logsumexp is at it.

    Returns:
        The student's and the teacher's log-probabilities, (*rows, k + 1); with k = classes there
        is no tail, and (*rows, classes) in the order of the indices.

    Raises:
        ConfigError: other rows than the student's, or a temperature that wasn't kept.
    """
    rows, classes = student_logits.shape[:-1], student_logits.shape[-1]
    if teacher.values.shape[:-1] != rows or teacher.values.shape[-1] > classes:
        raise ConfigError(
            f"Top-k logits of the shape {tuple(teacher.values.shape)} don't fit student logits of "
            f"the shape {tuple(student_logits.shape)}: the same rows, and k ≤ classes, are needed."
        )
    dtype = promoted(student_logits, teacher.values)
    student = tempered(student_logits, temperature, dtype)
    picked = student.gather(-1, teacher.indices)
    values = tempered(teacher.values, temperature, dtype)
    if values.shape[-1] == classes:
        return picked.log_softmax(dim=-1), values.log_softmax(dim=-1)
    student_rest = _student_rest(student, teacher.indices)
    teacher_rest = _teacher_rest(values, teacher.logsumexp_at(temperature).to(dtype), student_rest)
    student_buckets = torch.cat([picked, student_rest.unsqueeze(-1)], dim=-1)
    teacher_buckets = torch.cat([values, teacher_rest.unsqueeze(-1)], dim=-1)
    return student_buckets.log_softmax(dim=-1), teacher_buckets.log_softmax(dim=-1)


def _student_rest(student: Tensor, indices: Tensor) -> Tensor:
    """Return the logsumexp outside the indices; −inf where all those classes are masked."""
    others = student.scatter(-1, indices, LOG_ZERO).clamp(min=LOG_ZERO)
    rest = others.logsumexp(dim=-1)
    return rest.masked_fill(rest < LOG_ZERO / 2, -math.inf)


def _teacher_rest(values: Tensor, logsumexp: Tensor, student_rest: Tensor) -> Tensor:
    """Return the logit of the teacher's tail from the difference of two logsumexps.

    The difference is known to the rounding of its terms, so a tail smaller than that is put at
    the dtype's epsilon: finite, and never 0, since reverse KL divides by it. Only where the
    student has no tail either (its others are all masked) is such a tail empty.
    """
    epsilon = torch.finfo(values.dtype).eps
    gap = logsumexp - values.logsumexp(dim=-1)
    rest = logsumexp + torch.log(-torch.expm1(-gap.clamp(min=epsilon)))
    rounding = 8 * epsilon * logsumexp.abs().clamp(min=1.0)
    return rest.masked_fill((gap <= rounding) & student_rest.isneginf(), -math.inf)


# Of the match losses: precision, real tokens, unit vectors.

Keep: TypeAlias = Bool[Tensor, "batch length"] | None
"""Which tokens are real; None where the adaptor gives no mask."""


def widen(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Turn half precision into float32; float32 and float64 stay."""
    return values.to(promoted(values))


def full_precision(values: Tensor) -> torch.autocast:
    """Hold autocast off: a matrix product of differences mustn't fall back to half."""
    return torch.autocast(device_type=values.device.type, enabled=False)


def unit(vectors: Float[Tensor, "*rows size"]) -> Float[Tensor, "*rows size"]:
    """Divide each vector by its L2 norm; a zero vector stays zero and gets no gradient.

    u = v / ‖v‖. Dividing first by the largest entry, held constant, leaves u and its gradient
    as they are and keeps the squares within range.

    Args:
        vectors: any leading axes, in any unit.

    Returns:
        Vectors of length 1, or 0 where the norm is below the square root of the smallest number.
    """
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True)
    is_zero = largest < torch.finfo(vectors.dtype).tiny ** 0.5
    scaled = vectors / largest.masked_fill(is_zero, 1.0)
    # A zero vector has norm 1 here, so that sqrt is never differentiated at 0.
    squared_norm = scaled.square().sum(dim=-1, keepdim=True).masked_fill(is_zero, 1.0)
    return torch.where(is_zero, torch.zeros_like(scaled), scaled / squared_norm.sqrt())


def zero_padding(
    states: Float[Tensor, "batch length hidden"], keep: Keep
) -> Float[Tensor, "batch length hidden"]:
    """Zero the vectors of padding, and their gradient.

    They have to be finite, as a model's hidden states are. A product takes a tenth of the time
    of a masked fill here, whose mask is broadcast along the innermost axis.
    """
    return states if keep is None else states * keep.unsqueeze(-1).to(states.dtype)


def stacked_layers(
    features: Sequence[Float[Tensor, "batch ..."]], keep: Keep
) -> Float[Tensor, "batch layers ..."]:
    """Return all layers of a match in one tensor: the statistic of a loss of many layers."""
    return torch.stack(list(features), dim=1)


def pair_mask(keep: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch length length"]:
    """Pairs of which both tokens are real."""
    return keep.unsqueeze(-1) & keep.unsqueeze(-2)
