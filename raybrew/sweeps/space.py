"""The search space of a sweep.

Tune's domains, the values of each path, and the jobs they make.
"""

import dataclasses
import difflib
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer, Normal

from raybrew.config import DistillJob
from raybrew.config.job import set_path, values_of
from raybrew.config.job_file import resolve_paths, validate
from raybrew.errors import ConfigError

# What a path of a space can become, as far as that can be said before the first trial.

MOST_INTEGERS = 64
"""Integers up to so many are gone through one by one; of more, the ends are looked at."""


@dataclass(frozen=True)
class Range:
    """The values of one path.

    Args:
        said: the search space as Tune says it, for messages.
        values: every value, or the ends of an interval.
        complete: whether these are all values.
        interval: (low, high) of numbers, both within; None for choices.
        integer: whether the interval holds integers alone.
        log: whether it is searched by its logarithm.
        inner: a broken number of the interval, which a field of integers refuses.
    """

    said: str
    values: tuple[Any, ...]
    complete: bool
    interval: tuple[float, float] | None = None
    integer: bool = False
    log: bool = False
    inner: float | None = None

    @staticmethod
    def choice(said: str, values: tuple[Any, ...]) -> "Range":
        """Return a range of single values."""
        return Range(said, values, complete=True)

    @staticmethod
    def between(said: str, low: float, high: float, *, integer: bool, log: bool) -> "Range":
        """Return a range of numbers, both ends within it."""
        if integer and high - low < MOST_INTEGERS:
            values: tuple[Any, ...] = tuple(range(int(low), int(high) + 1))
            return Range(said, values, True, (low, high), integer=True, log=log)
        ends = (int(low), int(high)) if integer else (float(low), float(high))
        return Range(said, ends, False, (low, high), integer=integer, log=log)

    def joined(self, other: "Range") -> "Range":
        """Return what a path can become that begins with one range and goes on with another."""
        values = (*self.values, *(each for each in other.values if each not in self.values))
        return Range(
            self.said if self.said == other.said else f"{self.said}, then {other.said}",
            values,
            self.complete and other.complete,
            _both(self.interval, other.interval),
            integer=self.integer and other.integer,
            log=self.log and other.log,
            inner=other.inner if self.inner is None else self.inner,
        )

    @property
    def tried(self) -> tuple[Any, ...]:
        """What is checked against the field."""
        return self.values if self.inner is None else (*self.values, self.inner)

    @property
    def searches(self) -> bool:
        """Whether there is anything to choose."""
        return len(self.values) > 1 or not self.complete

    def __post_init__(self) -> None:
        assert self.values, "a range has values"
        assert self.interval is None or all(map(math.isfinite, self.interval)), self.interval


def _both(
    one: tuple[float, float] | None, other: tuple[float, float] | None
) -> tuple[float, float] | None:
    if one is None or other is None:
        return None
    return min(one[0], other[0]), max(one[1], other[1])


# Tune's search spaces: written in YAML, and read for what they can give.
#
#     training.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}
#     distillation.kd_loss:   {choice: [ce, kl]}
#     training.seed:          {grid_search: [0, 1, 2]}
#
# The name is that of a function of `ray.tune`; behind it stand its arguments, as a list or, by
# name, as a mapping. `choice` and `grid_search` take the list of values itself.

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
        return _choice(path, f"grid_search({text_of(given['grid_search'])})", given["grid_search"])
    if not isinstance(given, Domain):
        if isinstance(given, Mapping) and any(isinstance(v, Domain) for v in given.values()):
            raise ConfigError(
                f"space.{path}: expected a search space of Tune's, got a mapping of them; name "
                f"each by its path, such as {path}.{next(iter(given))!s}"
            )
        return Range.choice(text_of(given), (given,))
    said = _without_addresses(f"{type(given).__name__.lower()} {given.domain_str}")
    if isinstance(given, Categorical):
        return _choice(path, f"choice({text_of(list(given.categories))})", given.categories)
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


def text_of(value: Any) -> str:
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


# A job and the paths of it that trials change, checked before the first of them.
#
# base job + {path: range} ──► every value against its field ──► combinations ──► jobs

Config = Mapping[str, Any]

MOST_JOBS = 256
"""Combinations up to so many are all looked at before the first trial."""

_ASKING = ("tasks.", "teachers.", "student.", "labels.", "distillation.matches")
"""Paths that decide which data is encoded or what teachers are asked for."""
_NOT_ASKING = (".weight",)


@dataclass(frozen=True)
class JobSpace:
    """What a sweep is over.

    Args:
        base: the job that the paths are set in.
        ranges: by path.
        folder: what relative paths are relative to; trials have working directories of their own.
    """

    base: DistillJob
    ranges: Mapping[str, Range]
    folder: Path = field(default_factory=Path.cwd)

    def job(self, config: Config) -> DistillJob:
        """Return the base job with these paths set.

        Raises:
            ConfigError: a path that the job hasn't got, or values that make no job.
        """
        values = values_of(self.base)
        for path, value in config.items():
            set_path(values, path, value, DistillJob)
        resolve_paths(values, self.folder)
        return validate(DistillJob, values)

    def check(self) -> None:
        """Refuse paths that the job hasn't got and values out of their fields' ranges.

        Each value is tried with the first value of every other path.

        Raises:
            ConfigError: with every mistake.
        """
        if not any(each.searches for each in self.ranges.values()):
            raise ConfigError(
                "space: expected a path with several values, such as "
                "`distillation.temperature: {uniform: [1, 10]}`, got none"
            )
        mistakes = list(self._unknown_paths()) or list(self._wrong_values())
        if mistakes:
            raise ConfigError("\n".join(dict.fromkeys(mistakes)))

    def jobs(self) -> Iterator[tuple[Config, DistillJob]]:
        """Yield the jobs that differ in what they ask of data and teachers, and their configs.

        All combinations where they are few; else those of the paths that decide what is asked
        of teachers, and the others one value at a time.

        Raises:
            ConfigError: too many of them to be looked at.
        """
        for config in self._combinations():
            yield config, self.job(config)

    @property
    def first(self) -> dict[str, Any]:
        """The first value of every path."""
        return {path: each.values[0] for path, each in self.ranges.items()}

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Every temperature of the space, which top-k labels must be kept for.

        Raises:
            ConfigError: they can't be listed.
        """
        path = "distillation.temperature"
        if path not in self.ranges:
            return (self.base.distillation.temperature,)
        if not self.ranges[path].complete:
            raise ConfigError(
                f"space.{path}: with labels.top_k the logsumexp of each temperature is kept with "
                f"the labels, so expected a choice or a grid, got {self.ranges[path].said}"
            )
        return tuple(float(value) for value in self.ranges[path].values)

    def _unknown_paths(self) -> Iterator[str]:
        # Each path alone, so that all mistakes are told at once.
        for path, each in self.ranges.items():
            try:
                set_path(values_of(self.base), path, each.values[0], DistillJob)
            except ConfigError as error:
                yield f"space.{error}"

    def _wrong_values(self) -> Iterator[str]:
        first = self.first
        for path, each in self.ranges.items():
            for value in each.tried:
                try:
                    self.job({**first, path: value})
                except ConfigError as error:
                    yield f"space.{path}: {each.said} can give {value!r}: {error}"

    def _combinations(self) -> Iterator[Config]:
        first = self.first
        asking = [path for path in self.ranges if self.asks(path)]
        if self._count(list(self.ranges)) <= MOST_JOBS:
            yield from self._product(first, list(self.ranges))
            return
        if self._count(asking) > MOST_JOBS:
            raise ConfigError(
                f"space: {', '.join(asking)} decide what the teachers are asked for, and make "
                f"{self._count(asking)} combinations; expected at most {MOST_JOBS}, since all of "
                "them are looked at before the first trial: list fewer values"
            )
        yield from self._product(first, asking)
        for path in self.ranges:
            if path not in asking:
                yield from self._product(first, [path])

    def asks(self, path: str) -> bool:
        """Return whether a path decides which data is encoded or what teachers are asked for."""
        with_top_k = self.base.labels.top_k is not None and path == "distillation.temperature"
        return with_top_k or (path.startswith(_ASKING) and not path.endswith(_NOT_ASKING))

    def _count(self, paths: list[str]) -> int:
        return math.prod(len(self.ranges[path].values) for path in paths)

    def _product(self, first: Config, paths: list[str]) -> Iterator[Config]:
        for values in itertools.product(*(self.ranges[path].values for path in paths)):
            yield {**first, **dict(zip(paths, values, strict=True))}
