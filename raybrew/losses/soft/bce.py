"""Binary cross-entropy for multi-label tasks."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from raybrew.losses.soft.class_mask import class_mean, present_classes
from raybrew.losses.soft.kd_loss import KDLoss
from raybrew.losses.soft.log_space import Temperature, promoted, tempered

__all__ = ["BCE", "bce"]


def bce(
    student_logits: Float[Tensor, "*rows classes"],
    teacher_logits: Float[Tensor, "*rows classes"],
    temperature: Temperature,
) -> Float[Tensor, "*rows"]:
    """Mean over classes of −y log σ(s/T) − (1 − y) log(1 − σ(s/T)) with y = σ(t/T).

    Args:
        student_logits: raw, one independent logit for each label.
        teacher_logits: raw. Classes at −inf on both sides are left out of the mean.
        temperature: a number, or one for each row.

    Returns:
        (*rows), in nats; its minimum is the mean entropy of the teacher's labels.
    """
    dtype = promoted(student_logits, teacher_logits)
    student = tempered(student_logits, temperature, dtype)
    teacher = tempered(teacher_logits, temperature, dtype)
    yes, no = teacher.sigmoid(), (-teacher).sigmoid()
    # A label of probability 0 adds 0 even where the student's logit is infinite.
    yes_term = yes * logsigmoid(student).masked_fill(yes == 0, 0.0)
    no_term = no * logsigmoid(-student).masked_fill(no == 0, 0.0)
    return class_mean(-(yes_term + no_term), present_classes(student_logits, teacher_logits))


BCE = KDLoss("bce", bce)
