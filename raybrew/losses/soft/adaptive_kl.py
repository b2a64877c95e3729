"""Adaptive mix of forward and reverse KL by the gap at the head and at the tail."""

import torch
from jaxtyping import Float
from torch import Tensor

from raybrew.losses.soft.kd_loss import KDLoss
from raybrew.losses.soft.kl import kl
from raybrew.losses.soft.options import Limits
from raybrew.losses.soft.reverse_kl import reverse_kl

__all__ = ["ADAPTIVE_KL", "adaptive_kl"]


def adaptive_kl(
    student_log_probs: Float[Tensor, "*rows classes"],
    teacher_log_probs: Float[Tensor, "*rows classes"],
    *,
    mu: float | int = 0.5,
) -> Float[Tensor, "*rows"]:
    """(g_head KL(p‖q) + g_tail KL(q‖p)) / (g_head + g_tail) with g = Σ |p_c − q_c| over the part.

    The head is the fewest classes, the teacher's largest, whose mass reaches μ; classes that tie
    are taken by index. The weights carry no gradient.

    Args:
        student_log_probs: log q at the temperature.
        teacher_log_probs: log p at the temperature.
        mu: μ in (0, 1), the mass of the head.

    Returns:
        (*rows), in nats.

    Reference:
        Wu et al. 2024, arXiv:2404.02657. (Their script leaves the class that crosses μ out of the
        head, unless it is the first; the paper's definition takes it in, and so do we.)
    """
    head_share = _head_share(student_log_probs.exp(), teacher_log_probs.exp(), mu)
    forward = kl(student_log_probs, teacher_log_probs)
    backward = reverse_kl(student_log_probs, teacher_log_probs)
    # An infinite divergence of no weight counts for nothing.
    forward = forward.masked_fill(head_share == 0, 0.0)
    backward = backward.masked_fill(head_share == 1, 0.0)
    return head_share * forward + (1 - head_share) * backward


@torch.no_grad()
def _head_share(student_probs: Tensor, teacher_probs: Tensor, mu: float | int) -> Tensor:
    """Take g_head / (g_head + g_tail); ½ where both distributions agree and it doesn't matter."""
    sorted_probs, order = teacher_probs.sort(dim=-1, descending=True, stable=True)
    gap = (sorted_probs - student_probs.gather(-1, order)).abs()
    mass_before = sorted_probs.cumsum(dim=-1) - sorted_probs
    head_gap = gap.masked_fill(mass_before >= mu, 0.0).sum(dim=-1)
    total = gap.sum(dim=-1)
    return torch.where(total > 0, head_gap / total, 0.5)


ADAPTIVE_KL = KDLoss(
    "adaptive_kl",
    adaptive_kl,
    space="log_probs",
    limits={"mu": Limits(0.0, 1.0, low_open=True, high_open=True)},
)
