"""Classes that are masked out by −inf on both sides, for losses that average over classes."""

from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["class_mean", "present_classes"]


def present_classes(
    student_logits: Float[Tensor, "*rows classes"], teacher_logits: Float[Tensor, "*rows classes"]
) -> Bool[Tensor, "*rows classes"]:
    """Mark the classes that aren't −inf on both sides."""
    return ~(student_logits.isneginf() & teacher_logits.isneginf())


def class_mean(
    values: Float[Tensor, "*rows classes"], present: Bool[Tensor, "*rows classes"], power: int = 1
) -> Float[Tensor, "*rows"]:
    """Average values^power over the classes that are present.

    Args:
        values: (*rows, classes); may be NaN where the class is absent.
        present: which classes count.
        power: applied after the mask, so that no NaN reaches the gradient.

    Returns:
        (*rows); 0 where no class is present.
    """
    kept = values.masked_fill(~present, 0.0) ** power
    return kept.sum(dim=-1) / present.sum(dim=-1).clamp(min=1)
