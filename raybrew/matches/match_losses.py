"""Match losses by name.

A match loss is a built-in one, one that the user registered, or an import path
"package.module:name" to a MatchLoss, to a function that builds one from its options, or to a
function (student, teacher, mask=None) → one number, as TextBrewer takes them.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from pydantic import ValidationError, validate_call
from torch import Tensor

from raybrew.errors import ConfigError, import_object, unknown_name
from raybrew.losses.hidden import cos, emd, fsp, hidden_mse, mmd, pkd
from raybrew.losses.match_loss import Axis, Feature, Features, MatchLoss, examples
from raybrew.losses.numerics import Keep, stacked_layers, widen
from raybrew.losses.relations import (
    attention_ce,
    attention_ce_mean,
    attention_mse,
    attention_mse_sum,
    attention_transfer,
    cka,
    minilm_attention,
    minilm_value_relation,
    minilmv2_relation,
    rkd_angle,
    rkd_distance,
    sp,
)

MATCH_LOSSES: dict[str, MatchLoss | Callable[..., Any]] = {
    "attention_mse": attention_mse,
    "attention_mse_sum": attention_mse_sum,
    "attention_ce": attention_ce,
    "attention_ce_mean": attention_ce_mean,
    "hidden_mse": hidden_mse,
    "cos": cos,
    "pkd": pkd,
    "fsp": fsp,
    "gram": fsp,
    "mmd": mmd,
    "nst": mmd,
    "attention_transfer": attention_transfer,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "sp": sp,
    "cka": cka,
    "minilm_attention": minilm_attention,
    "minilm_value_relation": minilm_value_relation,
    "minilmv2_relation": minilmv2_relation,
    "emd": emd,
}
"""Name → what builds the loss from its options, or one of the user's."""

BUILT_IN_MATCH_LOSSES = frozenset(MATCH_LOSSES)


def match_loss(
    name: str,
    options: Mapping[str, Any] | None = None,
    feature: Feature = "hidden",
    *,
    several_layers: bool = False,
) -> MatchLoss:
    """Build the match loss of a name.

    Args:
        name: a key of MATCH_LOSSES, or "package.module:name" for one of the user's own.
        options: keyword options of the loss, such as {"pooling": "first"} for `rkd_distance`.
        feature: what a function of the user's that returns one number is to be given.
        several_layers: whether such a function gets a list of layers on each side.

    Returns:
        The loss.

    Raises:
        ConfigError: an unknown name (with the nearest ones), an option that the
            loss doesn't have, or a value that it can't have.
    """
    options = dict(options or {})
    if ":" not in name and name not in MATCH_LOSSES:
        raise unknown_name("match loss", name, MATCH_LOSSES)
    found = MATCH_LOSSES.get(name, name)
    found = as_match_loss(name, found, feature, several_layers=several_layers)
    if isinstance(found, MatchLoss):
        if options:
            raise ConfigError(f"Match loss {name!r} takes no options; got {sorted(options)}.")
        return found
    for option in options:
        if option not in (known := inspect.signature(found).parameters):
            raise unknown_name(f"option of match loss {name!r}", option, known)
    loss = _built(name, found, options) if name in BUILT_IN_MATCH_LOSSES else found(**options)
    if not isinstance(loss, MatchLoss):
        raise ConfigError(
            f"{name!r} built a {type(loss).__name__}; expected a MatchLoss, or a function "
            "(student, teacher, mask=None) that returns one number."
        )
    return loss


def as_match_loss(
    name: str, found: object, feature: Feature = "hidden", *, several_layers: bool = False
) -> MatchLoss | Callable[..., Any]:
    """Take in a match loss of the user's.

    Args:
        name: for messages.
        found: a MatchLoss, a function that builds one from its options, or a function
            (student, teacher, mask=None) → one number; or an import path to one of them.
        feature: what a function that returns one number is to be given.
        several_layers: whether such a function gets a list of layers on each side.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(found, str):
        found = import_object(found, "match loss")
    if isinstance(found, MatchLoss):
        return found
    if not callable(found):
        raise ConfigError(
            f"{name!r} is a {type(found).__name__}; expected a MatchLoss, a function that builds "
            "one, or a function (student, teacher, mask=None) that returns one number."
        )
    function: Callable[..., Any] = found
    required = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) < 2:  # it builds a loss
        return function
    return from_function(name, function, feature, several_layers=several_layers)


def _built(name: str, build: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Build a loss of this package; its signature states the values that its options can have."""
    try:
        return _validated(build)(**options)
    except ValidationError as error:
        mistakes = "; ".join(
            f"option {'.'.join(map(str, each['loc']))}: {each['msg']}, got {each['input']!r}"
            for each in error.errors()
        )
        raise ConfigError(f"Match loss {name!r}: {mistakes}.") from error


@functools.cache
def _validated(build: Callable[..., Any]) -> Callable[..., Any]:
    # It takes a millisecond to build, and losses are built for each batch.
    return validate_call(build)


_AXES: dict[Feature, tuple[Axis, ...]] = {
    "hidden": ("token", "hidden"),
    "attention": ("head", "token", "token"),
    "query": ("head", "token", "hidden"),
    "key": ("head", "token", "hidden"),
    "value": ("head", "token", "hidden"),
}


def from_function(
    name: str,
    function: Callable[..., Tensor],
    feature: Feature = "hidden",
    *,
    several_layers: bool = False,
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
        statistic=stacked_layers if several_layers else whole_feature,
        compare=partial(_spread, function=function, several_layers=several_layers),
        count=examples,
        # What the function does with padding isn't known.
        padding_counts=True,
    )


def whole_feature(features: Features, keep: Keep) -> Tensor:
    """Return the feature as it is: the statistic of a loss that isn't known to need less."""
    return features[0]


def _spread(
    student: Features,
    keep: Keep,
    statistic: Tensor,
    function: Callable[..., Tensor],
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
