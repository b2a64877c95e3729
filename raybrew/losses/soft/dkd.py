"""Decoupled knowledge distillation: the true class against the rest, and the rest by itself."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from raybrew.losses.soft.kd_loss import KDLoss
from raybrew.losses.soft.kl import kl
from raybrew.losses.soft.log_space import LOG_ZERO, Temperature, promoted, tempered
from raybrew.losses.soft.options import Limits

__all__ = ["DKD", "dkd"]


def dkd(
    student_logits: Float[Tensor, "*rows classes"],
    teacher_logits: Float[Tensor, "*rows classes"],
    temperature: Temperature,
    labels: Int64[Tensor, "*rows"],
    *,
    alpha: float | int = 1.0,
    beta: float | int = 8.0,
) -> Float[Tensor, "*rows"]:
    """α TCKD + β NCKD; plain KL(p‖q) in rows without a label.

    TCKD = KL((p_y, 1 − p_y) ‖ (q_y, 1 − q_y)); NCKD = KL(p̂ ‖ q̂), the two softmaxes without the
    class y. Since KL(p‖q) = TCKD + (1 − p_y) NCKD, a row of negative label is worth that sum.

    Args:
        student_logits: raw.
        teacher_logits: raw.
        temperature: a number, or one for each row.
        labels: true classes; negative = no label, plain KL in that row.
        alpha: weight of TCKD.
        beta: weight of NCKD, which is 0 when there are two classes only.

    Returns:
        (*rows), in nats.

    Reference:
        Zhao et al. 2022, arXiv:2203.08679.
    """
    dtype = promoted(student_logits, teacher_logits)
    student = tempered(student_logits, temperature, dtype)
    teacher = tempered(teacher_logits, temperature, dtype)
    student_log_probs, teacher_log_probs = student.log_softmax(-1), teacher.log_softmax(-1)
    target = labels.clamp(min=0).unsqueeze(-1)
    target_term = kl(_binary(student_log_probs, target), _binary(teacher_log_probs, target))
    rest_term = kl(_without(student, target), _without(teacher, target))
    # A teacher that leaves no other class anything says nothing about them.
    nothing_left = teacher.scatter(-1, target, LOG_ZERO).amax(dim=-1) <= LOG_ZERO
    rest_term = rest_term.masked_fill(nothing_left, 0.0)
    plain = kl(student_log_probs, teacher_log_probs)
    return torch.where(labels < 0, plain, alpha * target_term + beta * rest_term)


def _binary(log_probs: Tensor, target: Tensor) -> Tensor:
    """Take (log p_y, log(1 − p_y)), the second from its own terms, exact where p_y is near 1."""
    others = log_probs.scatter(-1, target, LOG_ZERO).clamp(min=LOG_ZERO)
    rest = others.logsumexp(dim=-1, keepdim=True)
    return torch.cat([log_probs.gather(-1, target), rest], dim=-1)


def _without(logits: Tensor, target: Tensor) -> Tensor:
    """Take the log-softmax of the other classes; the target's own is a huge negative number."""
    return logits.scatter(-1, target, LOG_ZERO).log_softmax(dim=-1)


DKD = KDLoss(
    "dkd",
    dkd,
    needs_labels=True,
    limits={"alpha": Limits(0.0), "beta": Limits(0.0)},
)
