"""Skew Kullback-Leibler divergence."""

from jaxtyping import Float
from torch import Tensor

from raybrew.losses.soft.kd_loss import KDLoss
from raybrew.losses.soft.kl import kl
from raybrew.losses.soft.log_space import log_mixture
from raybrew.losses.soft.options import Limits

__all__ = ["SKEW_KL", "SKEW_LIMITS", "skew_kl"]

SKEW_LIMITS = {"skew": Limits(0.0, 1.0, high_open=True)}


def skew_kl(
    student_log_probs: Float[Tensor, "*rows classes"],
    teacher_log_probs: Float[Tensor, "*rows classes"],
    *,
    skew: float | int = 0.1,
) -> Float[Tensor, "*rows"]:
    """KL(p‖λ p + (1 − λ) q).

    Args:
        student_log_probs: log q at the temperature.
        teacher_log_probs: log p at the temperature.
        skew: λ in [0, 1); at 0 it is `kl`.

    Returns:
        (*rows), in nats, at most −log λ.

    Reference:
        DistiLLM, Ko et al. 2024, arXiv:2402.03898.
    """
    if skew == 0:
        return kl(student_log_probs, teacher_log_probs)
    return kl(log_mixture(teacher_log_probs, student_log_probs, skew), teacher_log_probs)


SKEW_KL = KDLoss("skew_kl", skew_kl, space="log_probs", top_k=True, limits=SKEW_LIMITS)
