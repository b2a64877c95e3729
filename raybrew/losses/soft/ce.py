"""Soft cross-entropy, TextBrewer's default."""

from jaxtyping import Float
from torch import Tensor

from raybrew.losses.soft.kd_loss import KDLoss
from raybrew.losses.soft.log_space import expectation

__all__ = ["CE", "ce"]


def ce(
    student_log_probs: Float[Tensor, "*rows classes"],
    teacher_log_probs: Float[Tensor, "*rows classes"],
) -> Float[Tensor, "*rows"]:
    """Cross-entropy of the student under the teacher, −Σ_c p_c log q_c.

    Args:
        student_log_probs: log q at the temperature.
        teacher_log_probs: log p at the temperature.

    Returns:
        (*rows), in nats.

    Reference:
        Hinton et al. 2015, arXiv:1503.02531, without the factor T², as in TextBrewer.
    """
    return -expectation(teacher_log_probs.exp(), student_log_probs)


CE = KDLoss("ce", ce, space="log_probs", top_k=True)
