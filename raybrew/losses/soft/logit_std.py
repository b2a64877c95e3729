"""KL between z-scored logits."""

from jaxtyping import Float
from torch import Tensor

from raybrew.losses.soft.kd_loss import KDLoss
from raybrew.losses.soft.kl import kl
from raybrew.losses.soft.log_space import Temperature, log_probs, promoted
from raybrew.losses.soft.options import Limits

__all__ = ["LOGIT_STD", "logit_std"]


def logit_std(
    student_logits: Float[Tensor, "*rows classes"],
    teacher_logits: Float[Tensor, "*rows classes"],
    temperature: Temperature,
    *,
    unbiased: bool = False,
    eps: float | int = 1e-7,
) -> Float[Tensor, "*rows"]:
    """KL(softmax(Z(t)/T) ‖ softmax(Z(s)/T)) with Z(z) = (z − mean z) / (std z + ε).

    Args:
        student_logits: raw; −inf marks a masked class, left out of mean and std.
        teacher_logits: raw.
        temperature: a number, or one for each row.
        unbiased: divide the variance by C − 1, as the authors' code does; the paper divides by C.
        eps: added to the standard deviation.

    Returns:
        (*rows), in nats.

    Reference:
        Sun et al. 2024, arXiv:2403.01427.
    """
    dtype = promoted(student_logits, teacher_logits)
    student = _standardised(student_logits.to(dtype), unbiased, eps)
    teacher = _standardised(teacher_logits.to(dtype), unbiased, eps)
    return kl(log_probs(student, temperature), log_probs(teacher, temperature))


def _standardised(logits: Tensor, unbiased: bool, eps: float | int) -> Tensor:
    """Z-score over the classes that aren't masked; −inf stays −inf."""
    masked = logits.isneginf()
    count = (~masked).sum(dim=-1, keepdim=True)
    filled = logits.masked_fill(masked, 0.0)
    mean = filled.sum(dim=-1, keepdim=True) / count.clamp(min=1)
    centred = (filled - mean).masked_fill(masked, 0.0)
    divisor = (count - 1 if unbiased else count).clamp(min=1)
    variance = centred.square().sum(dim=-1, keepdim=True) / divisor
    # A constant row has std 0, where the root has no derivative: it is taken as constant there.
    constant = variance == 0
    deviation = variance.masked_fill(constant, 1.0).sqrt().masked_fill(constant, 0.0)
    return (centred / (deviation + eps)).masked_fill(masked, float("-inf"))


LOGIT_STD = KDLoss("logit_std", logit_std, limits={"eps": Limits(0.0, low_open=True)})
