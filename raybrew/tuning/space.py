"""A job and the paths of it that trials change, checked before the first of them.

base job + {path: range} ──► every value against its field ──► combinations ──► jobs
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raybrew.config import DistillJob
from raybrew.errors import ConfigError
from raybrew.job_paths import set_path
from raybrew.job_values import values_of
from raybrew.jobfile import resolve_paths, validate
from raybrew.tuning.ranges import Range

__all__ = ["JobSpace"]

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
