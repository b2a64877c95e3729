"""What a path of a space can become, as far as that can be said before the first trial."""

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["Range"]

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
