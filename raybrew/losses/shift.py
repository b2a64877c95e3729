"""Probability shift: a teacher that is wrong is made to rank the true class first."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["probability_shift"]


def probability_shift(
    teacher_logits: Float[Tensor, "*rows classes"], labels: Int64[Tensor, "*rows"]
) -> Float[Tensor, "*rows classes"]:
    """Swap the true class's logit with the row's largest one, in a new tensor.

    z'_y = z_m, z'_m = z_y with m = argmax z (the first, where several tie).

    Args:
        teacher_logits: raw, (B, C) or (B, L, C); never written to, since labels are shared.
        labels: true classes; a negative one leaves its row unchanged.

    Returns:
        The shifted logits, a tensor of its own.

    Reference:
        Wen et al. 2019, arXiv:1911.07471; TextBrewer's `probability_shift`.
    """
    largest = teacher_logits.argmax(dim=-1, keepdim=True)
    target = labels.unsqueeze(-1)
    target = torch.where(target < 0, largest, target)
    lowered = teacher_logits.scatter(-1, largest, teacher_logits.gather(-1, target))
    return lowered.scatter(-1, target, teacher_logits.gather(-1, largest))
