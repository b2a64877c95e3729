"""What Tune's settings, schedulers and searchers take: values that they would stumble over later.

Tune itself looks at most of them when the first trial is due, after the labels were computed.
"""

import datetime
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from raybrew.errors import ConfigError

__all__ = ["check_arguments", "check_settings"]

Check = tuple[Callable[[Any], bool], str]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_budget(value: Any) -> bool:
    if isinstance(value, datetime.timedelta):
        return value.total_seconds() > 0
    return _is_number(value) and value > 0


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value))


_BOOL: Check = (lambda v: isinstance(v, bool), "true or false")
_TEXT: Check = (lambda v: isinstance(v, str) and bool(v.strip()), "a name")
_POSITIVE: Check = (lambda v: _is_number(v) and v > 0, "a number greater than 0")
_NOT_NEGATIVE: Check = (lambda v: _is_number(v) and v >= 0, "a number of at least 0")
_ABOVE_ONE: Check = (lambda v: _is_number(v) and v > 1, "a number greater than 1")
_SHARE: Check = (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1")
_COUNT: Check = (lambda v: _is_integer(v) and v >= 1, "an integer of at least 1")
_LIMIT: Check = (lambda v: _is_integer(v) and v >= 0, "an integer of at least 0")
_SEED: Check = (lambda v: _is_integer(v) and 0 <= v < 2**32, "an integer from 0 to 4294967295")
_FUNCTION: Check = (callable, "a function, which a script can give and a file can't")

_SETTINGS: dict[str, Check] = {
    "mode": (lambda v: v in ("min", "max"), "min or max"),
    "metric": _TEXT,
    "num_samples": (
        lambda v: _is_integer(v) and (v >= 1 or v == -1),
        "an integer of at least 1, or -1 for as many as the time allows",
    ),
    "max_concurrent_trials": _LIMIT,
    "time_budget_s": (_is_budget, "a number of seconds greater than 0"),
    "reuse_actors": _BOOL,
    "trial_name_creator": _FUNCTION,
    "trial_dirname_creator": _FUNCTION,
}
_NOT_NONE = ("num_samples", "reuse_actors")

_ARGUMENTS: dict[str, Check] = {
    "time_attr": _TEXT,
    "max_t": _POSITIVE,
    "grace_period": _POSITIVE,
    "reduction_factor": _ABOVE_ONE,
    "brackets": _COUNT,
    "stop_last_trials": _BOOL,
    "min_samples_required": _COUNT,
    "min_time_slice": _NOT_NEGATIVE,
    "hard_stop": _BOOL,
    "perturbation_interval": _POSITIVE,
    "burn_in_period": _NOT_NEGATIVE,
    "hyperparam_mutations": (
        lambda v: isinstance(v, Mapping) and bool(v),
        "a mapping of paths to lists of values or search spaces",
    ),
    "quantile_fraction": (lambda v: _is_number(v) and 0 <= v <= 0.5, "a number from 0 to 0.5"),
    "resample_probability": _SHARE,
    "perturbation_factors": (_is_pair, "a list of two numbers"),
    "custom_explore_fn": _FUNCTION,
    "log_config": _BOOL,
    "require_attrs": _BOOL,
    "synch": _BOOL,
    "seed": _SEED,
    "random_state": _SEED,
    "max_concurrent": _LIMIT,
    "constant_grid_search": _BOOL,
    "points_to_evaluate": (
        lambda v: isinstance(v, list) and all(isinstance(each, Mapping) for each in v),
        "a list of mappings of paths to values",
    ),
    "study_name": _TEXT,
    "space": (lambda v: False, "the search spaces under space: of the file alone"),
}
_MAY_BE_NONE = ("seed", "random_state", "points_to_evaluate", "study_name")


def check_settings(config: Any) -> None:
    """Refuse settings that Tune can't use.

    Args:
        config: Ray's TuneConfig.

    Raises:
        ConfigError: with each of them.
    """
    values = {name: getattr(config, name) for name in _SETTINGS}
    given = {k: v for k, v in values.items() if v is not None or k in _NOT_NONE}
    _refuse("tune", given, _SETTINGS)


def check_arguments(what: str, values: Mapping[str, Any]) -> None:
    """Refuse arguments of a scheduler or searcher that it would stumble over.

    Args:
        what: the place in the file.
        values: by name; names that aren't known are left to Tune.

    Raises:
        ConfigError: with each of them.
    """
    given = {k: v for k, v in values.items() if v is not None or k not in _MAY_BE_NONE}
    _refuse(what, given, _ARGUMENTS)


def _refuse(what: str, given: Mapping[str, Any], checks: Mapping[str, Check]) -> None:
    wrong = [
        f"{what}.{name}: expected {checks[name][1]}, got {value!r}"
        for name, value in given.items()
        if name in checks and not checks[name][0](value)
    ]
    if wrong:
        raise ConfigError("\n".join(wrong))
