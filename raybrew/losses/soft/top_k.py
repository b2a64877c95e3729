"""Large vocabularies: the k largest logits, their indices, and the tail as one more bucket.

teacher  values, indices, logsumexp ──► log p of k classes + log of the rest's mass ──┐
student  all logits ──► gathered at the indices + logsumexp of the rest ──────────────┴─► k + 1
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from raybrew.errors import ConfigError
from raybrew.losses.soft.log_space import LOG_ZERO, Temperature, promoted, tempered

__all__ = ["TopK", "bucket_log_probs"]


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
    """Take the logsumexp of the classes outside the indices; −inf where all of them are masked."""
    others = student.scatter(-1, indices, LOG_ZERO).clamp(min=LOG_ZERO)
    rest = others.logsumexp(dim=-1)
    return rest.masked_fill(rest < LOG_ZERO / 2, -math.inf)


def _teacher_rest(values: Tensor, logsumexp: Tensor, student_rest: Tensor) -> Tensor:
    """Take the logit of the teacher's tail from the difference of two logsumexps.

    The difference is known to the rounding of its terms, so a tail smaller than that is put at
    the dtype's epsilon: finite, and never 0, since reverse KL divides by it. Only where the
    student has no tail either (its others are all masked) is such a tail empty.
    """
    epsilon = torch.finfo(values.dtype).eps
    gap = logsumexp - values.logsumexp(dim=-1)
    rest = logsumexp + torch.log(-torch.expm1(-gap.clamp(min=epsilon)))
    rounding = 8 * epsilon * logsumexp.abs().clamp(min=1.0)
    return rest.masked_fill((gap <= rounding) & student_rest.isneginf(), -math.inf)
