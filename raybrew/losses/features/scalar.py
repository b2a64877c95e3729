"""A match loss from a function of full tensors that returns one number, as in TextBrewer."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from raybrew.losses.features.counts import examples
from raybrew.losses.features.base import Feature, Features, MatchLoss
from raybrew.losses.features.numerics import Keep, stacked_layers, widen
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


def from_function(
    name: str, function: ScalarLoss, feature: Feature = "hidden", *, several_layers: bool = False
) -> MatchLoss:
    """Make a match loss of a function (student, teacher, mask=…) → one number.

    The function sees one batch at a time, so over ranks and micro-batches its values are averaged
    with the number of examples as weight; nothing is reduced at the teacher but padding.

    Args:
        name: shown in messages and metrics.
        function: takes the features of one layer of each side, or a list of them, and the mask as
            TextBrewer's do.
        feature: what it compares.
        several_layers: whether the function gets a list of layers on each side.

    Returns:
        The loss, at module level so that workers can import it.
    """
    return MatchLoss(
        name=name,
        features=(feature,),
        num_layers=None if several_layers else 1,
        axes=("layer", *_AXES[feature]) if several_layers else _AXES[feature],
        statistic=stacked_layers if several_layers else _whole_feature,
        compare=partial(_spread, function=function, several_layers=several_layers),
        count=examples,
        # What the function does with padding is its own affair.
        padding_counts=True,
    )


def _whole_feature(features: Features, keep: Keep) -> Tensor:
    return features[0]


def _spread(
    student: Features,
    keep: Keep,
    statistic: Tensor,
    function: ScalarLoss,
    several_layers: bool,
) -> Float[Tensor, " batch"]:
    num_rows = student[0].shape[0]
    present = torch.ones(num_rows, device=student[0].device) if keep is None else keep.any(dim=1)
    if not bool(present.any()):
        # Nothing to compare, but a graph to go through: the function may not stand an empty batch.
        return widen(student[0]).reshape(num_rows, -1)[:, :0].sum(dim=1)
    own = [widen(layer) for layer in student]
    if several_layers:
        value = function(own, list(statistic.unbind(dim=1)), mask=keep)
    else:
        value = function(own[0], statistic, mask=keep)
    return value * present.to(value.dtype)
