"""Mean squared error of the logits."""

from jaxtyping import Float
from torch import Tensor

from raybrew.losses.soft.class_mask import class_mean, present_classes
from raybrew.losses.soft.kd_loss import KDLoss
from raybrew.losses.soft.log_space import Temperature, promoted, tempered

__all__ = ["MSE", "mse"]


def mse(
    student_logits: Float[Tensor, "*rows classes"],
    teacher_logits: Float[Tensor, "*rows classes"],
    temperature: Temperature,
) -> Float[Tensor, "*rows"]:
    """Mean over classes of ((s_c − t_c) / T)².

    Args:
        student_logits: raw.
        teacher_logits: raw. Classes at −inf on both sides are left out of the mean.
        temperature: a number, or one for each row.

    Returns:
        (*rows).

    Reference:
        TextBrewer's `kd_mse_loss`.
    """
    dtype = promoted(student_logits, teacher_logits)
    difference = tempered(student_logits, temperature, dtype) - tempered(
        teacher_logits, temperature, dtype
    )
    return class_mean(difference, present_classes(student_logits, teacher_logits), power=2)


MSE = KDLoss("mse", mse)
