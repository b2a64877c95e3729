"""Skew reverse Kullback-Leibler divergence."""

from jaxtyping import Float
from torch import Tensor

from raybrew.losses.soft.kd_loss import KDLoss
from raybrew.losses.soft.skew_kl import SKEW_LIMITS, skew_kl

__all__ = ["SKEW_REVERSE_KL", "skew_reverse_kl"]


def skew_reverse_kl(
    student_log_probs: Float[Tensor, "*rows classes"],
    teacher_log_probs: Float[Tensor, "*rows classes"],
    *,
    skew: float | int = 0.1,
) -> Float[Tensor, "*rows"]:
    """KL(q‖λ q + (1 − λ) p).

    Args:
        student_log_probs: log q at the temperature.
        teacher_log_probs: log p at the temperature.
        skew: λ in [0, 1); at 0 it is `reverse_kl`.

    Returns:
        (*rows), in nats, at most −log λ.

    Reference:
        DistiLLM, Ko et al. 2024, arXiv:2402.03898.
    """
    return skew_kl(
        student_log_probs=teacher_log_probs, teacher_log_probs=student_log_probs, skew=skew
    )


SKEW_REVERSE_KL = KDLoss(
    "skew_reverse_kl", skew_reverse_kl, space="log_probs", top_k=True, limits=SKEW_LIMITS
)
