"""The search space of a sweep: Tune's domains, the values of each path, and the jobs they make.

    training.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}
    distillation.kd_loss:   {choice: [ce, kl]}
    training.seed:          {grid_search: [0, 1, 2]}

The name is that of a function of `ray.tune`, followed by its arguments, as a list or by name.
`choice` and `grid_search` take the list of values itself.

base job + {path: range} ──► every value against its field ──► combinations ──► jobs
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer, Normal

from raybrew.config import DistillJob
from raybrew.config.job import set_path, values_of
from raybrew.config.job_file import resolve_paths, validate
from raybrew.errors import ConfigError, collect_mistakes, did_you_mean
from raybrew.runs.ray_config import Types, build_ray_object

Config = Mapping[str, Any]

FUNCTIONS: dict[str, Any] = {
    function.__name__: function
    for function in (
        *(tune.choice, tune.grid_search),
        *(tune.uniform, tune.quniform, tune.loguniform, tune.qloguniform),
        *(tune.randn, tune.qrandn),
        *(tune.randint, tune.qrandint, tune.lograndint, tune.qlograndint),
    )
}
_OF_VALUES = {"choice": "categories", "grid_search": "values"}
"""Functions that take a list of values, and the name of that argument."""
_TYPES: Types = {
    **dict.fromkeys(_OF_VALUES.values(), Annotated[list[Any], Field(min_length=1)]),
    "q": Annotated[float, Field(gt=0)],
}

MAX_INTEGERS = 64
"""Of up to so many integers each is checked; of more, the ends."""
MAX_JOBS = 256
"""Of up to so many combinations each is checked before the first trial."""
_DEVIATIONS = 6
"""A normal distribution is taken to end so many standard deviations from its mean."""
_SAMPLES = 64

_PREPARED = ("tasks.", "teachers.", "student.", "labels.", "distillation.matches")
"""Paths that decide which data is encoded or which labels are needed, weights excepted."""


def space_from(values: Any) -> dict[str, Any]:
    """Return a space with Tune's own objects from a job file's `space:`.

    Raises:
        ConfigError: a value is no search space; names the path.
    """
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(
            "space: expected a mapping of paths, such as "
            f"`distillation.temperature: {{uniform: [1, 10]}}`, got {values!r}"
        )
    mistakes: list[str] = []
    space = {}
    for path, given in values.items():
        with collect_mistakes(mistakes):
            space[str(path)] = domain_from(str(path), given)
            range_of(str(path), space[str(path)])
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return space


def domain_from(path: str, given: Any, section: str = "space") -> Any:
    """Return Tune's own object for `{function: arguments}`.

    Args:
        path: what it is for.
        given: the value in the file.
        section: where it stands, for messages.

    Raises:
        ConfigError: Tune has no such function, or it doesn't take these arguments.
    """
    what = f"{section}.{path}"
    name = next(iter(given)) if isinstance(given, Mapping) and len(given) == 1 else None
    if name not in FUNCTIONS:
        raise ConfigError(
            f"{what}: expected {{function: arguments}} with one of {', '.join(FUNCTIONS)}, "
            f"got {given!r}{did_you_mean(name, FUNCTIONS)}"
        )
    arguments = given[name]
    if name in _OF_VALUES:
        arguments = {_OF_VALUES[name]: arguments}
    elif not isinstance(arguments, (list, Mapping)):
        arguments = [arguments]
    return build_ray_object(FUNCTIONS[name], f"{what}.{name}", arguments, _TYPES)


@dataclass(frozen=True)
class Range:
    """The values of one path.

    Args:
        text: the search space as Tune writes it, for messages.
        values: every value, or the ends of an interval.
        complete: whether these are all values.
        interval: (low, high) of numbers, both within; None for choices.
        integer: whether the interval holds integers alone.
        log: whether it is searched by its logarithm.
        inner: a number of the interval that is no integer, which a field of integers refuses.
    """

    text: str
    values: tuple[Any, ...]
    complete: bool = True
    interval: tuple[float, float] | None = None
    integer: bool = False
    log: bool = False
    inner: float | None = None

    @staticmethod
    def between(text: str, low: float, high: float, *, integer: bool, log: bool) -> "Range":
        """Return a range of numbers, both ends within it."""
        if integer and high - low < MAX_INTEGERS:
            values: tuple[Any, ...] = tuple(range(int(low), int(high) + 1))
            return Range(text, values, True, (low, high), integer=True, log=log)
        ends = (int(low), int(high)) if integer else (float(low), float(high))
        return Range(text, ends, False, (low, high), integer=integer, log=log)

    def joined(self, other: "Range") -> "Range":
        """Return the values of a path that starts in one range and may change to another."""
        intervals = self.interval and other.interval and (self.interval, other.interval)
        return Range(
            self.text if self.text == other.text else f"{self.text}, then {other.text}",
            (*self.values, *(each for each in other.values if each not in self.values)),
            self.complete and other.complete,
            intervals and (min(low for low, _ in intervals), max(high for _, high in intervals)),
            integer=self.integer and other.integer,
            log=self.log and other.log,
            inner=other.inner if self.inner is None else self.inner,
        )

    @property
    def checked(self) -> tuple[Any, ...]:
        """The values that are checked against the field."""
        return self.values if self.inner is None else (*self.values, self.inner)

    @property
    def is_searched(self) -> bool:
        """Whether there is anything to choose."""
        return len(self.values) > 1 or not self.complete

    def __post_init__(self) -> None:
        assert self.values, "a range has values"
        assert self.interval is None or all(map(math.isfinite, self.interval)), self.interval


def range_of(path: str, given: Any) -> Range:
    """Return the values of a path: those of Tune's search space, or one that stays.

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
        return Range(text_of(given), (given,))
    text = _without_addresses(f"{type(given).__name__.lower()} {given.domain_str}")
    if isinstance(given, Categorical):
        return _choice(path, f"choice({text_of(list(given.categories))})", given.categories)
    if isinstance(given, (Float, Integer)):
        return _numbers(path, text, given)
    # A function of the user's: its values can only be sampled.
    try:
        samples = tuple(given.sample() for _ in range(_SAMPLES))
    except (TypeError, LookupError, AttributeError) as error:
        raise ConfigError(
            f"space.{path}: expected a function that needs no other path of the space, since its "
            f"values are checked before the first trial, got {text}: {error}"
        ) from error
    return Range(text, samples, complete=False)


def text_of(value: Any) -> str:
    """Return a value as Python writes it, the same in every process."""
    return _without_addresses(repr(value))


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _choice(path: str, text: str, values: Any) -> Range:
    if not values:
        raise ConfigError(f"space.{path}: expected at least one value, got {text}")
    return Range(text, tuple(values))


def _numbers(path: str, text: str, given: Float | Integer) -> Range:
    def refuse(expected: str) -> ConfigError:
        return ConfigError(f"space.{path}: expected {expected}, got {text}")

    sampler: Any = given.get_sampler()
    step: Any = None
    low: Any = given.lower
    high: Any = given.upper
    integer = isinstance(given, Integer)
    type_: Any = Integral if integer else Real
    if hasattr(sampler, "get_sampler"):  # rounded to a step
        sampler, step = sampler.get_sampler(), sampler.q
        if not isinstance(step, type_) or not 0 < step < math.inf:
            raise refuse(f"{'an integer' if integer else 'a number'} greater than 0 as q")
    if isinstance(sampler, Normal):
        low = sampler.mean - _DEVIATIONS * sampler.sd
        high = sampler.mean + _DEVIATIONS * sampler.sd
    if not all(isinstance(end, type_) and abs(end) < math.inf for end in (low, high)):
        raise refuse(f"an interval {'of integers ' if integer else ''}with ends")
    if low >= high:
        raise refuse("an interval whose lower end is below its upper end")
    if step and math.floor(high / step) < math.ceil(low / step):
        raise refuse(f"a multiple of {step} within")
    if integer and step is None:
        high -= 1  # Tune's integers end before their upper bound
    log = "LogUniform" in type(sampler).__name__
    made = Range.between(text, low, high, integer=integer, log=log)
    return made if integer else replace(made, inner=_no_integer(low, high, step))


def _no_integer(low: float, high: float, step: float | None) -> float | None:
    """Return a number within that is no integer; None if all are, or none was found."""
    if step is None:
        middle = low + (high - low) * 0.4
        return (middle + high) / 2 if middle.is_integer() else middle
    first = math.ceil(low / step)
    near = ((first + n) * step for n in range(3))
    return next((n for n in near if n <= high and not float(n).is_integer()), None)


@dataclass(frozen=True)
class JobSpace:
    """A job and the paths of it that trials change.

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
            ConfigError: a path that the job doesn't have, or values that make no job.
        """
        values = values_of(self.base)
        for path, value in config.items():
            set_path(values, path, value, DistillJob)
        resolve_paths(values, self.folder)
        return validate(DistillJob, values)

    def check(self) -> None:
        """Refuse paths that the job doesn't have and values out of their fields' ranges.

        Each value is tried with the first value of every other path.

        Raises:
            ConfigError: with every mistake.
        """
        if not any(each.is_searched for each in self.ranges.values()):
            raise ConfigError(
                "space: expected a path with several values, such as "
                "`distillation.temperature: {uniform: [1, 10]}`, got none"
            )
        mistakes = list(self._unknown_paths()) or list(self._wrong_values())
        if mistakes:
            raise ConfigError("\n".join(dict.fromkeys(mistakes)))

    def jobs(self) -> Iterator[tuple[Config, DistillJob]]:
        """Yield the configs to prepare data and labels for, and their jobs.

        All combinations where they are few; else those of the paths that decide which labels are
        needed, and the others one value at a time.

        Raises:
            ConfigError: too many of them to be checked.
        """
        first, paths = self.first, list(self.ranges)
        if self._count(paths) <= MAX_JOBS:
            varied = [paths]
        else:
            prepared = [path for path in paths if self.is_prepared(path)]
            if self._count(prepared) > MAX_JOBS:
                raise ConfigError(
                    f"space: {', '.join(prepared)} decide which labels are needed, and make "
                    f"{self._count(prepared)} combinations; expected at most {MAX_JOBS}, since all "
                    "of them are checked before the first trial: list fewer values"
                )
            varied = [prepared, *([path] for path in paths if path not in prepared)]
        for each in varied:
            for values in itertools.product(*(self.ranges[path].values for path in each)):
                config = {**first, **dict(zip(each, values, strict=True))}
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
                f"the labels, so expected a choice or a grid, got {self.ranges[path].text}"
            )
        return tuple(float(value) for value in self.ranges[path].values)

    def is_prepared(self, path: str) -> bool:
        """Return whether a path decides which data is encoded or which labels are needed."""
        with_top_k = self.base.labels.top_k is not None and path == "distillation.temperature"
        return with_top_k or (path.startswith(_PREPARED) and not path.endswith(".weight"))

    def _unknown_paths(self) -> Iterator[str]:
        # Each path alone, so that all mistakes are reported at once.
        for path, each in self.ranges.items():
            try:
                set_path(values_of(self.base), path, each.values[0], DistillJob)
            except ConfigError as error:
                yield f"space.{error}"

    def _wrong_values(self) -> Iterator[str]:
        first = self.first
        for path, each in self.ranges.items():
            for value in each.checked:
                try:
                    self.job({**first, path: value})
                except ConfigError as error:
                    yield f"space.{path}: {each.text} can give {value!r}: {error}"

    def _count(self, paths: list[str]) -> int:
        return math.prod(len(self.ranges[path].values) for path in paths)
