"""Tune's search spaces: written in YAML, and read for what they can give.

    training.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}
    distillation.kd_loss:   {choice: [ce, kl]}
    training.seed:          {grid_search: [0, 1, 2]}

The name is that of a function of `ray.tune`; behind it stand its arguments, as a list or, by
name, as a mapping. `choice` and `grid_search` take the list of values itself.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer, Normal

from raybrew.errors import ConfigError
from raybrew.tuning.ranges import Range

__all__ = ["domain_from", "range_of", "space_from"]

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


def domain_from(path: str, given: Any) -> Any:
    """Return what `{function: arguments}` says in Tune's own objects."""
    name = next(iter(given)) if isinstance(given, Mapping) and len(given) == 1 else None
    if name not in FUNCTIONS:
        near = difflib.get_close_matches(str(name), FUNCTIONS, n=1)
        raise ConfigError(
            f"space.{path}: expected {{function: arguments}} with one of {', '.join(FUNCTIONS)}, "
            f"got {given!r}" + (f"; did you mean {near[0]}?" if near else "")
        )
    arguments = given[name]
    function: Any = FUNCTIONS[name]
    if name in _OF_VALUES:
        if not isinstance(arguments, list) or not arguments:
            raise ConfigError(f"space.{path}: {name} takes a list of values, got {arguments!r}")
        return function(arguments)
    try:
        if isinstance(arguments, Mapping):
            return function(**arguments)
        return function(*(arguments if isinstance(arguments, list) else [arguments]))
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"space.{path}: Tune's {name} refused {arguments!r}: {error}") from error


def range_of(path: str, given: Any) -> Range:
    """Return what a path can become: Tune's search space, or a value that stays.

    Raises:
        ConfigError: an empty choice, or numbers without end.
    """
    if isinstance(given, Mapping) and set(given) == {"grid_search"}:
        return _choice(path, f"grid_search({given['grid_search']!r})", given["grid_search"])
    if not isinstance(given, Domain):
        if isinstance(given, Mapping) and any(isinstance(v, Domain) for v in given.values()):
            raise ConfigError(
                f"space.{path}: expected a search space of Tune's, got a mapping of them; name "
                f"each by its path, such as {path}.{next(iter(given))!s}"
            )
        return Range.choice(repr(given), (given,))
    said = f"{type(given).__name__.lower()} {given.domain_str}"
    if isinstance(given, Categorical):
        return _choice(path, f"choice({list(given.categories)!r})", given.categories)
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


def _choice(path: str, said: str, values: Any) -> Range:
    if not values:
        raise ConfigError(f"space.{path}: expected at least one value, got {said}")
    return Range.choice(said, tuple(values))


def _numbers(path: str, said: str, given: Float | Integer) -> Range:
    sampler: Any = given.get_sampler()
    if hasattr(sampler, "get_sampler"):  # rounded to a step
        sampler = sampler.get_sampler()
        quantized = True
    else:
        quantized = False
    integer, low, high = isinstance(given, Integer), given.lower, given.upper
    if isinstance(sampler, Normal):
        low = sampler.mean - _DEVIATIONS * sampler.sd
        high = sampler.mean + _DEVIATIONS * sampler.sd
    elif integer and not quantized:
        high -= 1  # Tune's integers end before their upper bound
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise ConfigError(f"space.{path}: expected an interval with ends, got {said}")
    log = "LogUniform" in type(sampler).__name__
    return Range.between(said, low, high, integer=integer, log=log)
