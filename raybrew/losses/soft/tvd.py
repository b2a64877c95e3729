"""Total variation distance."""

from jaxtyping import Float
from torch import Tensor

from raybrew.losses.soft.kd_loss import KDLoss

__all__ = ["TVD", "tvd"]


def tvd(
    student_log_probs: Float[Tensor, "*rows classes"],
    teacher_log_probs: Float[Tensor, "*rows classes"],
) -> Float[Tensor, "*rows"]:
    """½ Σ_c |p_c − q_c|.

    Args:
        student_log_probs: log q at the temperature.
        teacher_log_probs: log p at the temperature.

    Returns:
        (*rows), in [0, 1].

    Reference:
        f-distill, Wen et al. 2023, arXiv:2307.15190.
    """
    return 0.5 * (teacher_log_probs.exp() - student_log_probs.exp()).abs().sum(dim=-1)


TVD = KDLoss("tvd", tvd, space="log_probs", top_k=True)
