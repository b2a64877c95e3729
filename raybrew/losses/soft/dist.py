"""DIST: relations, by Pearson correlation, between classes and between examples."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from raybrew.losses.soft.class_mask import present_classes
from raybrew.losses.soft.kd_loss import KDLoss
from raybrew.losses.soft.log_space import Temperature, log_probs, promoted
from raybrew.losses.soft.options import Limits

__all__ = ["DIST", "dist"]


def dist(
    student_logits: Float[Tensor, "*rows classes"],
    teacher_logits: Float[Tensor, "*rows classes"],
    temperature: Temperature,
    mask: Bool[Tensor, "*rows"] | None = None,
    *,
    beta: float | int = 1.0,
    gamma: float | int = 1.0,
) -> Float[Tensor, "*rows"]:
    """β (1 − ρ(q_row, p_row)) + γ mean over classes of (1 − ρ(q_class, p_class)).

    ρ is Pearson's correlation of probabilities: across the classes of a row, and across the valid
    rows for a class. The second is one number for the batch, given to each valid row, so that the
    sum over valid rows divided by their count is right. It relates the rows of one call: with
    micro-batches or several ranks, each relates its own.

    Where the teacher's probabilities don't vary (one valid row, a uniform row) there is no
    relation to learn, and the part is 0. Where only the student's don't, ρ is 0.

    Args:
        student_logits: raw.
        teacher_logits: raw. Classes at −inf on both sides are left out.
        temperature: a number, or one for each row.
        mask: True for valid rows; None = all are.
        beta: weight of the part between classes.
        gamma: weight of the part between examples.

    Returns:
        (*rows); 0 in rows that aren't valid.

    Reference:
        Huang et al. 2022, arXiv:2205.10536.
    """
    dtype = promoted(student_logits, teacher_logits)
    student_probs = log_probs(student_logits, temperature, dtype).exp()
    teacher_probs = log_probs(teacher_logits, temperature, dtype).exp()
    present = present_classes(student_logits, teacher_logits)
    rows, classes = present.shape[:-1], present.shape[-1]
    valid = present.new_ones(rows) if mask is None else mask
    between_classes = _distance(student_probs, teacher_probs, present, dim=-1)
    pairs = (present & valid.unsqueeze(-1)).reshape(-1, classes)
    by_class = _distance(
        student_probs.reshape(-1, classes), teacher_probs.reshape(-1, classes), pairs, dim=0
    )
    between_rows = by_class.sum() / pairs.any(dim=0).sum().clamp(min=1)
    return torch.where(valid, beta * between_classes + gamma * between_rows, 0.0)


def _distance(student: Tensor, teacher: Tensor, present: Tensor, dim: int) -> Tensor:
    """Take 1 − Pearson's correlation along a dimension, over the entries that are present."""
    student, student_norm, _ = _centred(student, present, dim)
    teacher, teacher_norm, varies = _centred(teacher, present, dim)
    correlation = (student * teacher).sum(dim=dim) / (student_norm * teacher_norm)
    return (1 - correlation).masked_fill(~varies, 0.0)


def _centred(values: Tensor, present: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Subtract the mean; give the norm, and whether the values vary beyond their rounding.

    The norm is kept above that rounding: scale-free, and it bounds the gradient at a student
    whose values are all alike.
    """
    values = values.masked_fill(~present, 0.0)
    mean = values.sum(dim=dim, keepdim=True) / present.sum(dim=dim, keepdim=True).clamp(min=1)
    centred = (values - mean).masked_fill(~present, 0.0)
    information = torch.finfo(values.dtype)
    rounding = (4 * information.eps) ** 2 * values.detach().square().sum(dim=dim)
    floor = rounding + information.tiny
    energy = centred.square().sum(dim=dim)
    return centred, torch.maximum(energy, floor).sqrt(), energy > floor


DIST = KDLoss(
    "dist",
    dist,
    needs_mask=True,
    limits={"beta": Limits(0.0), "gamma": Limits(0.0)},
)
