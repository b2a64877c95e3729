"""Generalised Jensen-Shannon divergence."""

from jaxtyping import Float
from torch import Tensor

from raybrew.losses.soft.kd_loss import KDLoss
from raybrew.losses.soft.kl import kl
from raybrew.losses.soft.log_space import log_mixture
from raybrew.losses.soft.options import Limits

__all__ = ["JSD", "jsd"]


def jsd(
    student_log_probs: Float[Tensor, "*rows classes"],
    teacher_log_probs: Float[Tensor, "*rows classes"],
    *,
    beta: float | int = 0.5,
) -> Float[Tensor, "*rows"]:
    """β KL(p‖m) + (1 − β) KL(q‖m) with m = β p + (1 − β) q.

    Args:
        student_log_probs: log q at the temperature.
        teacher_log_probs: log p at the temperature.
        beta: β in (0, 1), the teacher's share of the mixture.

    Returns:
        (*rows), in nats, at most the entropy of (β, 1 − β).

    Reference:
        GKD, Agarwal et al. 2023, arXiv:2306.13649.
    """
    mixture_log_probs = log_mixture(teacher_log_probs, student_log_probs, beta)
    teacher_term = kl(mixture_log_probs, teacher_log_probs)
    student_term = kl(mixture_log_probs, student_log_probs)
    return beta * teacher_term + (1 - beta) * student_term


JSD = KDLoss(
    "jsd",
    jsd,
    space="log_probs",
    top_k=True,
    limits={"beta": Limits(0.0, 1.0, low_open=True, high_open=True)},
)
