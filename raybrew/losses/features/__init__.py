"""Match losses on intermediate features, by name.

`match_loss("hidden_mse")` gives the object that states the teacher's statistic and the student's
side. A loss of the user's own is registered under a name (`raybrew.extensions`), or named by its
import path, "package.module:name": a MatchLoss, a function that builds one from its options, or a
function (student, teacher, mask=None) → one number, as TextBrewer takes them.
"""

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError, validate_call

from raybrew.errors import ConfigError
from raybrew.losses.features.attention import (
    attention_ce,
    attention_ce_mean,
    attention_mse,
    attention_mse_sum,
    minilm_attention,
)
from raybrew.losses.features.emd import emd
from raybrew.losses.features.hidden import cos, hidden_mse, pkd
from raybrew.losses.features.base import Feature, Features, Mask, MatchLoss
from raybrew.losses.features.ragged import FeatureSizes, Ragged, join, split
from raybrew.losses.features.relational import (
    attention_transfer,
    cka,
    minilm_value_relation,
    minilmv2_relation,
    rkd_angle,
    rkd_distance,
    sp,
)
from raybrew.losses.features.relations import fsp, mmd
from raybrew.losses.features.scalar import from_function

__all__ = [
    "BUILT_IN",
    "MATCH_LOSSES",
    "Feature",
    "FeatureSizes",
    "Features",
    "Mask",
    "MatchLoss",
    "Ragged",
    "as_match_loss",
    "from_function",
    "join",
    "match_loss",
    "split",
]

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

BUILT_IN = frozenset(MATCH_LOSSES)


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
        ConfigError: an unknown name (with the nearest ones), an option the loss hasn't got, or a
            value that the option can't have.
    """
    options = dict(options or {})
    found = _imported(name) if ":" in name else MATCH_LOSSES.get(name)
    if found is None:
        nearest = difflib.get_close_matches(name, MATCH_LOSSES, n=3, cutoff=0.4)
        hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
        raise ConfigError(
            f"There is no match loss {name!r}.{hint} The names are {', '.join(MATCH_LOSSES)}; one "
            'of your own is registered, or given as "package.module:name".'
        )
    found = as_match_loss(name, found, feature, several_layers=several_layers)
    if isinstance(found, MatchLoss):
        if options:
            raise ConfigError(f"Match loss {name!r} takes no options; got {sorted(options)}.")
        return found
    _check_options(name, found, options)
    loss = _built(name, found, options) if name in BUILT_IN else found(**options)
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
        found = _imported(found)
    if isinstance(found, MatchLoss):
        return found
    if not callable(found):
        raise ConfigError(
            f"{name!r} is a {type(found).__name__}; expected a MatchLoss, a function that builds "
            "one, or a function (student, teacher, mask=None) that returns one number."
        )
    function: Callable[..., Any] = found
    if not _takes_two_features(function):
        return function
    return from_function(name, function, feature, several_layers=several_layers)


def _built(name: str, build: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Build a loss of this package; its signature says what values its options can have."""
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
    # It takes a millisecond to make, and losses are built for each batch.
    return validate_call(build)


def _imported(path: str) -> object:
    module_name, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The match loss {path!r} can't be imported: {error}. Give it as "
            '"package.module:name", from a module that every worker can import.'
        ) from error


def _takes_two_features(function: Callable[..., Any]) -> bool:
    required = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return len(required) >= 2


def _check_options(name: str, build: Callable[..., Any], options: Mapping[str, Any]) -> None:
    known = inspect.signature(build).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        takes = f"its options are {', '.join(known)}" if known else "it takes none"
        raise ConfigError(f"Match loss {name!r} has no option {', '.join(unknown)}: {takes}.")
