"""Forward Kullback-Leibler divergence."""

from jaxtyping import Float
from torch import Tensor

from raybrew.losses.soft.kd_loss import KDLoss
from raybrew.losses.soft.log_space import expectation

__all__ = ["KL", "kl"]


def kl(
    student_log_probs: Float[Tensor, "*rows classes"],
    teacher_log_probs: Float[Tensor, "*rows classes"],
) -> Float[Tensor, "*rows"]:
    """KL(p‖q) = Σ_c p_c (log p_c − log q_c): the student covers the teacher.

    Args:
        student_log_probs: log q at the temperature.
        teacher_log_probs: log p at the temperature.

    Returns:
        (*rows), in nats; the gradient is that of `ce`.

    Reference:
        Hinton et al. 2015, arXiv:1503.02531.
    """
    return expectation(teacher_log_probs.exp(), teacher_log_probs - student_log_probs)


KL = KDLoss("kl", kl, space="log_probs", top_k=True)
