"""Tune's search spaces: written in YAML, and read for what they can give.

    training.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}
    distillation.kd_loss:   {choice: [ce, kl]}
    training.seed:          {grid_search: [0, 1, 2]}

The name is that of a function of `ray.tune`; behind it stand its arguments, as a list or, by
name, as a mapping. `choice` and `grid_search` take the list of values itself.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer, Normal

from raybrew.errors import ConfigError
from raybrew.tuning.ranges import Range

__all__ = ["domain_from", "range_of", "said_of", "space_from"]

FUNCTIONS = {
    "choice": tune.choice,
    "grid_search": tune.grid_search,
    "uniform": tune.uniform,
    "quniform": tune.quniform,
    "loguniform": tune.loguniform,
    "qloguniform": tune.qloguniform,
    "randn": tune.randn,
    "qrandn": tune.qrandn,
    "randint": tune.randint,
    "qrandint": tune.qrandint,
    "lograndint": tune.lograndint,
    "qlograndint": tune.qlograndint,
}
_OF_VALUES = ("choice", "grid_search")
_ENDS, _NORMAL = ("lower", "upper"), ("mean", "sd")
_ARGUMENTS = {
    "uniform": _ENDS,
    "quniform": (*_ENDS, "q"),
    "loguniform": _ENDS,
    "qloguniform": (*_ENDS, "q"),
    "randn": _NORMAL,
    "qrandn": (*_NORMAL, "q"),
    "randint": _ENDS,
    "qrandint": (*_ENDS, "q"),
    "lograndint": _ENDS,
    "qlograndint": (*_ENDS, "q"),
}
_OPTIONAL = {"randn": _NORMAL, "qrandint": ("q",)}
_DEVIATIONS = 6
"""A normal distribution is taken to end so many standard deviations from its mean."""
_SAMPLES = 64


def space_from(values: Any) -> dict[str, Any]:
    """Return a space with Tune's own objects from a job file's `space:`.

    Raises:
        ConfigError: what stands there is no search space; names the path.
    """
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(
            "space: expected a mapping of paths, such as "
            f"`distillation.temperature: {{uniform: [1, 10]}}`, got {values!r}"
        )
    return {str(path): domain_from(str(path), given) for path, given in values.items()}


def domain_from(path: str, given: Any, section: str = "space") -> Any:
    """Return what `{function: arguments}` says in Tune's own objects.

    Args:
        path: what it is for.
        given: what stands there.
        section: where, for messages.

    Raises:
        ConfigError: Tune has no such function, or it doesn't take these arguments.
    """
    what = f"{section}.{path}"
    name = next(iter(given)) if isinstance(given, Mapping) and len(given) == 1 else None
    if name not in FUNCTIONS:
        near = difflib.get_close_matches(str(name), FUNCTIONS, n=1)
        raise ConfigError(
            f"{what}: expected {{function: arguments}} with one of {', '.join(FUNCTIONS)}, "
            f"got {given!r}" + (f"; did you mean {near[0]}?" if near else "")
        )
    arguments = given[name]
    function: Any = FUNCTIONS[name]
    if name in _OF_VALUES:
        if not isinstance(arguments, list) or not arguments:
            raise ConfigError(f"{what}: {name} takes a list of values, got {arguments!r}")
        return function(arguments)
    values = _named_arguments(what, name, arguments)
    for argument, value in values.items():
        _check_number(what, name, argument, value, whole="int" in name)
    try:
        return function(**values)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{what}: Tune's {name} refused {arguments!r}: {error}") from error


def _named_arguments(what: str, name: str, given: Any) -> dict[str, Any]:
    known, optional = _ARGUMENTS[name], _OPTIONAL.get(name, ())
    listed = given if isinstance(given, (list, Mapping)) else [given]
    named = dict(listed) if isinstance(listed, Mapping) else dict(zip(known, listed, strict=False))
    required = [argument for argument in known if argument not in optional]
    if len(listed) > len(known) or set(named) - set(known) or set(required) - set(named):
        also = f", of which {' and '.join(optional)} may be left out" if optional else ""
        raise ConfigError(f"{what}: {name} takes {', '.join(known)}{also}; got {given!r}")
    return named


def _check_number(what: str, name: str, argument: str, value: Any, *, whole: bool) -> None:
    kind = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
        number = "an integer" if whole else "a number"
        raise ConfigError(f"{what}: expected {number} as {argument} of {name}, got {value!r}")
    if argument in ("q", "sd") and value <= 0:
        raise ConfigError(
            f"{what}: expected a number greater than 0 as {argument} of {name}, got {value!r}"
        )


def range_of(path: str, given: Any) -> Range:
    """Return what a path can become: Tune's search space, or a value that stays.

    Raises:
        ConfigError: an empty choice, numbers without end, or an interval with nothing in it.
    """
    if isinstance(given, Mapping) and set(given) == {"grid_search"}:
        return _choice(path, f"grid_search({said_of(given['grid_search'])})", given["grid_search"])
    if not isinstance(given, Domain):
        if isinstance(given, Mapping) and any(isinstance(v, Domain) for v in given.values()):
            raise ConfigError(
                f"space.{path}: expected a search space of Tune's, got a mapping of them; name "
                f"each by its path, such as {path}.{next(iter(given))!s}"
            )
        return Range.choice(said_of(given), (given,))
    said = _without_addresses(f"{type(given).__name__.lower()} {given.domain_str}")
    if isinstance(given, Categorical):
        return _choice(path, f"choice({said_of(list(given.categories))})", given.categories)
    if isinstance(given, (Float, Integer)):
        return _numbers(path, said, given)
    # A function of the user's: what it may give can only be tried.
    try:
        samples = tuple(given.sample() for _ in range(_SAMPLES))
    except (TypeError, LookupError, AttributeError) as error:
        raise ConfigError(
            f"space.{path}: expected a function that needs no other path of the space, since its "
            f"values are checked before the first trial, got {said}: {error}"
        ) from error
    return Range(said, samples, complete=False)


def said_of(value: Any) -> str:
    """Return a value as Python writes it, the same in every process."""
    return _without_addresses(repr(value))


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _choice(path: str, said: str, values: Any) -> Range:
    if not values:
        raise ConfigError(f"space.{path}: expected at least one value, got {said}")
    return Range.choice(said, tuple(values))


def _numbers(path: str, said: str, given: Float | Integer) -> Range:
    sampler: Any = given.get_sampler()
    step = None
    if hasattr(sampler, "get_sampler"):  # rounded to a step
        sampler, step = sampler.get_sampler(), sampler.q
        _check_number(f"space.{path}", said, "q", step, whole=isinstance(given, Integer))
    integer, low, high = isinstance(given, Integer), given.lower, given.upper
    if isinstance(sampler, Normal):
        low = sampler.mean - _DEVIATIONS * sampler.sd
        high = sampler.mean + _DEVIATIONS * sampler.sd
    numbers = all(isinstance(end, Integral if integer else Real) for end in (low, high))
    if not numbers or not (abs(low) < float("inf") and abs(high) < float("inf")):
        kind = "of integers " if integer else ""
        raise ConfigError(f"space.{path}: expected an interval {kind}with ends, got {said}")
    if low >= high:
        raise ConfigError(
            f"space.{path}: expected an interval whose lower end is below its upper end, got {said}"
        )
    if step and math.floor(high / step) < math.ceil(low / step):
        raise ConfigError(f"space.{path}: expected a multiple of {step} within, got {said}")
    if integer and step is None:
        high -= 1  # Tune's integers end before their upper bound
    log = "LogUniform" in type(sampler).__name__
    made = Range.between(said, low, high, integer=integer, log=log)
    return made if integer else dataclasses.replace(made, inner=_broken(low, high, step))


def _broken(low: float, high: float, step: float | None) -> float | None:
    """Return a number within that is no integer; None if all are, or none was found."""
    if step is None:
        middle = low + (high - low) * 0.4
        return (middle + high) / 2 if middle.is_integer() else middle
    first = math.ceil(low / step)
    near = ((first + n) * step for n in range(3))
    return next((n for n in near if n <= high and not float(n).is_integer()), None)
