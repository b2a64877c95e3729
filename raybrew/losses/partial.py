"""A loss before it is normalised: numerators and denominators apart."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

__all__ = ["Partial"]


class Partial(NamedTuple):
    """Per example: what the loss adds up, and what it is to be divided by.

    The loss over any set of examples is `numerator.sum() / denominator.sum()`, so it may be
    split over ranks and micro-batches. Denominators depend on masks and static sizes alone.
    """

    numerator: Float[Tensor, " batch"]
    denominator: Float[Tensor, " batch"]
