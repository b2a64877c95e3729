"""Reverse Kullback-Leibler divergence."""

from jaxtyping import Float
from torch import Tensor

from raybrew.losses.soft.kd_loss import KDLoss
from raybrew.losses.soft.kl import kl

__all__ = ["REVERSE_KL", "reverse_kl"]


def reverse_kl(
    student_log_probs: Float[Tensor, "*rows classes"],
    teacher_log_probs: Float[Tensor, "*rows classes"],
) -> Float[Tensor, "*rows"]:
    """KL(q‖p) = Σ_c q_c (log q_c − log p_c): the student stays where the teacher is.

    Args:
        student_log_probs: log q at the temperature.
        teacher_log_probs: log p at the temperature.

    Returns:
        (*rows), in nats; infinite where only the teacher has masked a class out.

    Reference:
        MiniLLM, Gu et al. 2023, arXiv:2306.08543.
    """
    return kl(student_log_probs=teacher_log_probs, teacher_log_probs=student_log_probs)


REVERSE_KL = KDLoss("reverse_kl", reverse_kl, space="log_probs", top_k=True)
