"""Schedules of the weights of terms and of temperatures, by name.

A weight schedule is a factor on a term's configured weight, from the progress of the run. A
temperature scheduler gives the temperature of each row, from the logits of a batch and the base T:

    w of each row ──► mean over the valid rows of all ranks ──► T + (mean w − w) β
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from raybrew.errors import ConfigError
from raybrew.losses.numerics import promoted
from raybrew.losses.registry import Limits, OptionValue, checked_options, find_method


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
) -> Callable[[float | int], float]:
    """Build a weight schedule from its name and options.

    Args:
        name: constant, linear_decay, linear_growth, cosine (start, end), annealed (start, end,
            begin, until); or one of the user's, by name or import path: progress -> factor, with
            its options as keyword-only parameters.
        options: what isn't given keeps its default.

    Returns:
        progress -> factor on the configured weight, picklable. Progress is global_step /
        total_steps, in [0, 1]; 0 is the first step, and anything outside is a ConfigError.

    Raises:
        ConfigError: an unknown name or option, a value out of range.
    """
    function = find_method("weight schedule", name, WEIGHT_SCHEDULES)
    what = f"Weight schedule {name!r}"
    checked = checked_options(what, function, options or {}, WEIGHT_LIMITS)
    return partial(_factor, what, partial(function, **checked))


def _factor(what: str, schedule: Callable[..., float], progress: float | int) -> float:
    if not 0.0 <= progress <= 1.0:
        raise ConfigError(
            f"{what}: expected progress = global_step / total_steps in [0, 1], got {progress}. Is "
            "the number of steps that of the whole run?"
        )
    return schedule(progress)


SumOverRanks = Callable[[Tensor], Tensor]
"""(Σ w, count) of this process → the sums over all of them."""


def constant_temperature(
    student_logits: Float[Tensor, "*rows classes"],
    teacher_logits: Float[Tensor, "..."],
    temperature: float | int,
) -> float | int:
    """T for every row."""
    return temperature


def flsw(
    student_logits: Float[Tensor, "*rows classes"],
    teacher_logits: Float[Tensor, "*rows classes"],
    temperature: float | int,
    mask: Bool[Tensor, "*rows"] | None,
    sum_over_ranks: SumOverRanks | None,
    *,
    beta: float | int,
    gamma: float | int,
    eps: float | int = 1e-4,
    min_temperature: float | int = 1e-2,
) -> Float[Tensor, "*rows"]:
    """T + (mean w − w) β with w = (1 − cos(s, t))^γ: focal, sharper where the student is off.

    ε is added to each norm; classes at −inf count as 0.

    Reference:
        Wen et al. 2019, arXiv:1911.07471.
    """
    dtype = promoted(student_logits, teacher_logits)
    student = _direction(student_logits.to(dtype), eps)
    teacher = _direction(teacher_logits.to(dtype), eps)
    # Rounding may put a cosine above 1, and a fractional power of a negative number is NaN.
    distance = (1 - (student * teacher).sum(dim=-1)).clamp(min=0.0)
    return _around(temperature, distance**gamma, beta, mask, sum_over_ranks, min_temperature)


def cwsm(
    student_logits: Float[Tensor, "*rows classes"],
    teacher_logits: Float[Tensor, "..."],
    temperature: float | int,
    mask: Bool[Tensor, "*rows"] | None,
    sum_over_ranks: SumOverRanks | None,
    *,
    beta: float | int,
    min_temperature: float | int = 1e-2,
) -> Float[Tensor, "*rows"]:
    """T + (mean w − w) β with w = 1 / (max softmax(s) + 1e-3): by the student's confidence.

    Reference:
        Wen et al. 2019, arXiv:1911.07471.
    """
    confidence = student_logits.to(promoted(student_logits)).softmax(dim=-1).amax(dim=-1)
    weight = 1 / (confidence + 1e-3)
    return _around(temperature, weight, beta, mask, sum_over_ranks, min_temperature)


def _direction(logits: Tensor, eps: float | int) -> Tensor:
    finite = logits.masked_fill(logits.isneginf(), 0.0)
    return finite / (finite.norm(dim=-1, keepdim=True) + eps)


def _around(
    temperature: float | int,
    weight: Tensor,
    beta: float | int,
    mask: Tensor | None,
    sum_over_ranks: SumOverRanks | None,
    min_temperature: float | int,
) -> Tensor:
    """Return T + (mean w − w) β, the mean over valid rows; rows that aren't valid keep T."""
    valid = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    sums = torch.stack([weight.masked_fill(~valid, 0.0).sum(), valid.sum().to(weight.dtype)])
    if sum_over_ranks is not None:
        sums = sum_over_ranks(sums)
    mean = sums[0] / sums[1].clamp(min=1)
    rows = (temperature + (mean - weight) * beta).clamp(min=min_temperature)
    return rows.masked_fill(~valid, float(temperature))


TEMPERATURE_SCHEDULERS: dict[str, Callable[..., float | int | Tensor]] = {
    "constant": constant_temperature,
    "flsw": flsw,
    "cwsm": cwsm,
}

TEMPERATURE_LIMITS = {
    "gamma": Limits(0.0),
    "eps": Limits(0.0, low_open=True),
    "min_temperature": Limits(0.0, low_open=True),
}


def make_temperature_scheduler(
    name: str, options: Mapping[str, OptionValue] | None = None
) -> Callable[..., float | int | Tensor]:
    """Build a temperature scheduler from its name and options.

    Args:
        name: constant; flsw (beta, gamma); cwsm (beta); or one of the user's, by name or import
            path: (student_logits, teacher_logits, temperature) -> T or (*rows), with `mask` and
            `sum_over_ranks` among its parameters if it needs them and its options as keyword-only
            ones.
        options: beta and gamma have no default. `min_temperature` (0.01) keeps a large beta from
            turning a temperature negative.

    Returns:
        (student_logits, teacher_logits, temperature, mask=None, sum_over_ranks=None) -> T itself,
        or (*rows), at least `min_temperature`; without gradient. The teacher's logits are one
        target, after probability shift. `mask` is True for valid rows, which alone enter the mean;
        `sum_over_ranks` adds up a small tensor, so that the mean is that of the global batch.

    Raises:
        ConfigError: an unknown name or option, a value out of range.
    """
    function = find_method("temperature scheduler", name, TEMPERATURE_SCHEDULERS)
    side_inputs = ("mask", "sum_over_ranks")
    checked = checked_options(
        f"Temperature scheduler {name!r}", function, options or {}, TEMPERATURE_LIMITS, side_inputs
    )
    taken = [name for name in side_inputs if name in inspect.signature(function).parameters]

    @torch.no_grad()
    def scheduler(
        student_logits: Float[Tensor, "*rows classes"],
        teacher_logits: Float[Tensor, "..."],
        temperature: float | int,
        mask: Bool[Tensor, "*rows"] | None = None,
        sum_over_ranks: SumOverRanks | None = None,
    ) -> float | int | Float[Tensor, "*rows"]:
        known = {"mask": mask, "sum_over_ranks": sum_over_ranks}
        side = {name: known[name] for name in taken}
        return function(student_logits, teacher_logits, temperature, **side, **checked)

    return scheduler
