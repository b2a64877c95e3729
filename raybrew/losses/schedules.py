"""Weight schedules: a factor on a term's configured weight, from the progress of the run."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raybrew.errors import ConfigError
from raybrew.losses.soft.options import Limits, OptionValue, checked_options, named

__all__ = ["WEIGHT_SCHEDULES", "WeightSchedule", "make_weight_schedule"]


def constant_weight(progress: float | int) -> float:
    """1."""
    return 1.0


def linear_decay(progress: float | int) -> float:
    """1 − x."""
    return 1.0 - progress


def linear_growth(progress: float | int) -> float:
    """Equal to x."""
    return float(progress)


def cosine(progress: float | int, *, start: float | int = 1.0, end: float | int = 0.0) -> float:
    """End + (start − end) · ½ (1 + cos πx)."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def annealed(
    progress: float | int,
    *,
    start: float | int = 1.0,
    end: float | int = 0.0,
    begin: float | int = 0.0,
    until: float | int = 1.0,
) -> float:
    """Move linearly from start to end while x goes from begin to until; level before and after.

    The defaults are the teacher's share 1 − λ of teacher annealing; start 0 and end 1 are the
    labels' share λ, for the hard-label weight.

    Reference:
        BAM, Clark et al. 2019, arXiv:1907.04829.
    """
    if until <= begin:
        return end if progress >= begin else start
    share = min(max((progress - begin) / (until - begin), 0.0), 1.0)
    return start + (end - start) * share


@dataclass(frozen=True)
class WeightSchedule:
    """A weight schedule with its options: a pure function of progress; picklable."""

    name: str
    function: Callable[..., float]
    options: Mapping[str, OptionValue]

    def __call__(self, progress: float | int) -> float:
        """Give the factor on the configured weight.

        Args:
            progress: global_step / total_steps in [0, 1]; 0 is the first step.

        Returns:
            The factor.

        Raises:
            ConfigError: progress outside [0, 1].
        """
        if not 0.0 <= progress <= 1.0:
            raise ConfigError(
                f"Weight schedule {self.name!r}: expected progress = global_step / total_steps in "
                f"[0, 1], got {progress}. Is the number of steps that of the whole run?"
            )
        return self.function(progress, **self.options)


WEIGHT_SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant_weight,
    "linear_decay": linear_decay,
    "linear_growth": linear_growth,
    "cosine": cosine,
    "annealed": annealed,
}

WEIGHT_LIMITS = {
    "start": Limits(0.0),
    "end": Limits(0.0),
    "begin": Limits(0.0, 1.0),
    "until": Limits(0.0, 1.0),
}


def make_weight_schedule(
    name: str, options: Mapping[str, OptionValue] | None = None
) -> WeightSchedule:
    """Build a weight schedule from its name and options.

    Args:
        name: constant, linear_decay, linear_growth, cosine (start, end), annealed (start, end,
            begin, until); or one of the user's, by name or import path: progress -> factor, with
            its options as keyword-only parameters.
        options: what isn't given keeps its default.

    Returns:
        progress -> factor.

    Raises:
        ConfigError: an unknown name or option, a value out of range.
    """
    function = named("weight schedule", name, WEIGHT_SCHEDULES)
    what = f"Weight schedule {name!r}"
    checked = checked_options(what, function, options or {}, WEIGHT_LIMITS)
    return WeightSchedule(name, function, checked)
