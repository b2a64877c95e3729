"""A match loss from a function of full tensors that returns one number, as in TextBrewer."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from raybrew.losses.features.counts import examples
from raybrew.losses.features.match_loss import Feature, Features, MatchLoss
from raybrew.losses.features.numerics import Keep, widen
from raybrew.losses.features.ragged import Axis

__all__ = ["from_function"]

ScalarLoss = Callable[..., Tensor]

_AXES: dict[Feature, tuple[Axis, ...]] = {
    "hidden": ("token", "hidden"),
    "attention": ("head", "token", "token"),
    "query": ("head", "token", "hidden"),
    "key": ("head", "token", "hidden"),
    "value": ("head", "token", "hidden"),
}


def from_function(name: str, function: ScalarLoss, feature: Feature = "hidden") -> MatchLoss:
    """Make a match loss of a function (student, teacher, mask=…) → one number.

    The function sees one batch at a time, so over ranks and micro-batches its values are averaged
    with the number of examples as weight; nothing is reduced at the teacher but padding.

    Args:
        name: shown in messages and metrics.
        function: takes the features of one layer of each side, and the mask as TextBrewer's do.
        feature: what it compares.

    Returns:
        The loss, at module level so that workers can import it.
    """
    return MatchLoss(
        name=name,
        features=(feature,),
        num_layers=1,
        axes=_AXES[feature],
        statistic=_whole_feature,
        compare=partial(_spread, function=function),
        count=examples,
        # What the function does with padding is its own affair.
        padding_counts=True,
    )


def _whole_feature(features: Features, keep: Keep) -> Tensor:
    return features[0]


def _spread(
    student: Features, keep: Keep, statistic: Tensor, function: ScalarLoss
) -> Float[Tensor, " batch"]:
    num_rows = student[0].shape[0]
    present = torch.ones(num_rows, device=student[0].device) if keep is None else keep.any(dim=1)
    if not bool(present.any()):
        # Nothing to compare, but a graph to go through: the function may not stand an empty batch.
        return student[0].reshape(num_rows, -1).sum(dim=1) * 0.0
    value = function(widen(student[0]), statistic, mask=keep)
    return value * present.to(value.dtype)
