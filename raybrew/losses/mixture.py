"""Several teachers on one task: the weight of each in each row, and their combined target.

    teacher_logits (K, *rows, C) ──► teacher_weights ──► (K, *rows)
                                                            │
         mean_logits, mean_probs ──► combine ──► one target (*rows, C) ──► one loss
         sum_losses ──► K losses, each row of each times its weight

Weightings:

    fixed     the static weights
    softmax   softmax_k(α score_k)
    ca_mkd    (1 − e^{CE_k} / Σ_j e^{CE_j}) / (K − 1), arXiv:2201.00007
    mt_bert   1 / (1 + CE_k), arXiv:2106.01023
    min_ce    1 for the teacher of the least CE, arXiv:2401.10491
    random    1 for a teacher that is drawn in proportion to the static weights
    route     1 for the teacher that the data names

They sum to 1 in each row, except with sum_losses: there `fixed` and `mt_bert` are taken as they
are. CE, entropy and probability are at T = 1. Rows of negative label, where a weighting needs a
label, take the static weights, scaled to the sum 1. Only `fixed`, `random` and those rows look at
the static weights. Where a teacher has no answer, the others make up for it: the weights of the row
keep their sum (for `mt_bert` under sum_losses, whose sum is unknown, they are scaled by
K / available). A weighting of the user's own is scaled to the sum 1, and under sum_losses taken as
it is.
"""

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64, UInt64
from torch import Tensor

from raybrew.errors import ConfigError, LabelError, unknown_name
from raybrew.losses.numerics import Temperature, expectation, log_probs, promoted
from raybrew.losses.registry import Limits, OptionValue, checked_options, find_method

# Where exp would meet an infinite cross-entropy (a label at a masked class) on every teacher.
LARGEST_CE = 1e30
SIDE_INPUTS = ("labels", "route", "row_keys")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How several teachers become one objective.

    Attributes:
        combination: mean_logits, mean_probs, or sum_losses.
        weighting: a key of `TEACHER_WEIGHTINGS`, or an import path of the user's.
        score: what `softmax` weighs by: neg_ce, neg_entropy, max_prob.
        alpha: factor on that score.
        seed: of the random pick.
    """

    combination: str = "mean_logits"
    weighting: str = "fixed"
    score: str = "neg_ce"
    alpha: float | int = 1.0
    seed: int = 0

    @property
    def sums_losses(self) -> bool:
        """Whether each teacher has a loss of its own, rather than one target for all."""
        return self.combination == "sum_losses"

    @property
    def needs_labels(self) -> bool:
        """Whether weights come from the cross-entropy with the true label."""
        if self.weighting == "softmax":
            return self.score == "neg_ce"
        return self.needs("labels")

    def needs(self, side_input: str) -> bool:
        """Whether the weighting can't do without `labels`, `route` or `row_keys`."""
        return side_input in parameters_of(find_weighting(self.weighting))


_BY_SCORE = Mixture(combination="mean_probs", weighting="softmax")
# One name for a combination and a weighting that go together. Those that pick one teacher have its
# logits for a target; CA-MKD and MT-BERT weigh losses, as their papers do.
MIXTURES: dict[str, Mixture] = {
    "mean_logits": Mixture(combination="mean_logits"),
    "mean_probs": Mixture(combination="mean_probs"),
    "sum_losses": Mixture(combination="sum_losses"),
    "min_ce": Mixture(combination="mean_logits", weighting="min_ce"),
    "random": Mixture(combination="mean_logits", weighting="random"),
    "route": Mixture(combination="mean_logits", weighting="route"),
    "ca_mkd": Mixture(combination="sum_losses", weighting="ca_mkd"),
    "mt_bert": Mixture(combination="sum_losses", weighting="mt_bert"),
    "softmax_neg_ce": replace(_BY_SCORE, score="neg_ce"),
    "softmax_neg_entropy": replace(_BY_SCORE, score="neg_entropy"),
    "softmax_max_prob": replace(_BY_SCORE, score="max_prob"),
}
CHOICES = {
    "combination": ("mean_logits", "mean_probs", "sum_losses"),
    "score": ("neg_ce", "neg_entropy", "max_prob"),
}


def make_mixture(name: str, options: Mapping[str, OptionValue] | None = None) -> Mixture:
    """Build a mixture from its name.

    Args:
        name: a key of `MIXTURES`.
        options: combination, weighting, score, alpha, seed: what differs from the named one.

    Returns:
        The mixture.

    Raises:
        ConfigError: an unknown name, option or choice, or a value out of range.
    """
    if name not in MIXTURES:
        raise unknown_name("mixture", name, MIXTURES)
    options = options or {}
    checked_options(f"Mixture {name!r}", Mixture, options, {"alpha": Limits(0.0)})
    for option, choices in CHOICES.items():
        if option in options and options[option] not in choices:
            raise unknown_name(f"{option} of mixture {name!r}", str(options[option]), choices)
    if not isinstance(options.get("seed", 0), int):
        raise ConfigError(f"Mixture {name!r}, option 'seed': expected an integer.")
    mixture = replace(MIXTURES[name], **options)
    find_weighting(mixture.weighting)
    return mixture


class RowInputs(NamedTuple):
    """What is known of each row besides the teachers' logits.

    Args:
        labels: true classes, int64 (*rows); negative = none.
        route: index of the row's teacher, int (*rows).
        row_keys: key of the row's example, 64 bits (*rows); a random pick is a function of seed,
            epoch and key.
        epoch: from 0.
        available: bool (K, *rows), False where a teacher has no answer; None = all have one.
    """

    labels: Int64[Tensor, "*rows"] | None = None
    route: Int[Tensor, "*rows"] | None = None
    row_keys: UInt64[Tensor, "*rows"] | Int64[Tensor, "*rows"] | None = None
    epoch: int = 0
    available: Bool[Tensor, " teachers *rows"] | None = None


NO_ROW_INPUTS = RowInputs()


def _cross_entropies(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Return −log softmax(t_k)_y in nats; meaningless in rows without a label."""
    target = labels.clamp(min=0).expand(teacher_logits.shape[:-1]).unsqueeze(-1)
    picked = log_probs(teacher_logits, 1.0).gather(-1, target).squeeze(-1)
    return (-picked).clamp(max=LARGEST_CE)


def _shares(scores: Tensor, available: Tensor) -> Tensor:
    """Return the softmax over the teachers that are available."""
    return scores.masked_fill(~available, -math.inf).softmax(dim=0)


def _only(index: Tensor, static_weights: Tensor) -> Tensor:
    """Give weight 1 to one teacher in each row, in the dtype of the static weights."""
    teachers = torch.arange(len(static_weights), device=index.device)
    column = teachers.view(-1, *[1] * index.dim())
    return (column == index.unsqueeze(0)).to(static_weights.dtype)


def _fixed(static_weights: Tensor, available: Tensor) -> Tensor:
    return static_weights.expand(available.shape)


def _softmax(teacher_logits: Tensor, labels: Tensor, available: Tensor, mixture: Mixture) -> Tensor:
    if mixture.score == "neg_ce":
        return _shares(-_cross_entropies(teacher_logits, labels) * mixture.alpha, available)
    teacher_log_probs = log_probs(teacher_logits, 1.0)
    probs = teacher_log_probs.exp()
    if mixture.score == "neg_entropy":
        return _shares(expectation(probs, teacher_log_probs) * mixture.alpha, available)
    return _shares(probs.amax(dim=-1) * mixture.alpha, available)


def _ca_mkd(teacher_logits: Tensor, labels: Tensor, available: Tensor) -> Tensor:
    # The K of the formula is that of the row; a teacher alone has weight 1.
    others = available.sum(dim=0) - 1
    shares = _shares(_cross_entropies(teacher_logits, labels), available)
    return torch.where(others > 0, (1 - shares) / others.clamp(min=1), 1.0)


def _mt_bert(teacher_logits: Tensor, labels: Tensor, available: Tensor) -> Tensor:
    weights = 1 / (1 + _cross_entropies(teacher_logits, labels))
    # Each teacher's weight stands by itself, so a missing one is made up for by the count.
    return weights * len(available) / available.sum(dim=0).clamp(min=1)


def _min_ce(
    teacher_logits: Tensor, labels: Tensor, static_weights: Tensor, available: Tensor
) -> Tensor:
    errors = _cross_entropies(teacher_logits, labels).masked_fill(~available, math.inf)
    return _only(errors.argmin(dim=0), static_weights)


def _random(
    row_keys: Tensor, static_weights: Tensor, available: Tensor, epoch: int, mixture: Mixture
) -> Tensor:
    keys = row_keys.view(torch.int64)
    picked = random_pick(keys, static_weights, available, mixture.seed, epoch)
    return _only(picked, static_weights)


def _route(route: Tensor, static_weights: Tensor) -> Tensor:
    return _only(route, static_weights)


def random_pick(
    row_keys: Int64[Tensor, "*rows"],
    static_weights: Float[Tensor, "..."],
    available: Bool[Tensor, " teachers *rows"],
    seed: int,
    epoch: int,
) -> Int64[Tensor, "*rows"]:
    """Pick a teacher in each row, by an exponential race: argmin_k −log(u_k) / w_k.

    u_k is a hash of (seed, epoch, k, key). Teacher k wins with probability w_k / Σ w, and when a
    teacher drops out only the rows it had won are picked again.

    Args:
        row_keys: the bits of each row's key.
        static_weights: (teachers, 1, …), in proportion to the chances.
        available: teachers that may be picked.
        seed: of the run.
        epoch: counts from 0.

    Returns:
        The teacher's index in each row.
    """
    keys = _scrambled(row_keys)
    times = []
    for teacher in range(len(available)):
        salt = hashlib.blake2b(f"{seed}/{epoch}/{teacher}".encode(), digest_size=8).digest()
        bits = _shifted(_scrambled(keys + int.from_bytes(salt, signed=True)), 11)
        uniform = (bits.to(torch.float64) + 0.5) * 2.0**-53
        times.append(-uniform.log())
    race = torch.stack(times) / static_weights.to(torch.float64)
    return race.masked_fill(~available, math.inf).argmin(dim=0)


def _scrambled(values: Tensor) -> Tensor:
    """Mix the bits of int64 (the finaliser of SplitMix64), with wrapping products."""
    values = (values ^ _shifted(values, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    values = (values ^ _shifted(values, 27)) * (0x94D049BB133111EB - 2**64)
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


TEACHER_WEIGHTINGS: dict[str, Callable[..., Tensor]] = {
    "fixed": _fixed,
    "softmax": _softmax,
    "ca_mkd": _ca_mkd,
    "mt_bert": _mt_bert,
    "min_ce": _min_ce,
    "random": _random,
    "route": _route,
}
"""By name: functions of what their parameters name, built-in or registered by a user."""

BUILT_IN_WEIGHTINGS = frozenset(TEACHER_WEIGHTINGS)
USER_INPUTS = ("teacher_logits", "static_weights", "available", "epoch", *SIDE_INPUTS)


def find_weighting(name: str) -> Callable[..., Tensor]:
    """Find a weighting by name, or the user's by its import path.

    Raises:
        ConfigError: neither leads anywhere.
    """
    found = find_method("weighting of teachers", name, TEACHER_WEIGHTINGS)
    return found if name in BUILT_IN_WEIGHTINGS else as_teacher_weighting(name, found)


def as_teacher_weighting(name: str, value: Any) -> Callable[..., Tensor]:
    """Take in a weighting of the user's.

    Args:
        name: for messages.
        value: a function whose parameters are among teacher_logits (K, *rows, C), static_weights
            (K, 1, …), labels (*rows), available (K, *rows), route (*rows), row_keys (*rows) and
            epoch, and that returns weights ≥ 0, (K, *rows). Rows are scaled to the sum 1, except
            with sum_losses.

    Raises:
        ConfigError: it isn't one.
    """
    if not callable(value):
        raise ConfigError(
            f"Weighting of teachers {name!r}: expected a function, got {type(value).__name__}."
        )
    function: Callable[..., Any] = value
    unknown = sorted(parameters_of(function) - set(USER_INPUTS))
    if unknown:
        raise ConfigError(
            f"Weighting of teachers {name!r}: expected parameters among {', '.join(USER_INPUTS)}, "
            f"got {', '.join(unknown)}."
        )
    return function


def parameters_of(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of a function's parameters."""
    return frozenset(inspect.signature(function).parameters)


@torch.no_grad()
def teacher_weights(
    mixture: Mixture,
    teacher_logits: Float[Tensor, " teachers *rows classes"],
    static_weights: Sequence[float | int] | Float[Tensor, " teachers"],
    rows: RowInputs = NO_ROW_INPUTS,
) -> Float[Tensor, " teachers *rows"]:
    """Weigh each teacher in each row, as described at the head of this module; without gradient.

    Args:
        mixture: what to do.
        teacher_logits: raw; with fixed, random or route any stack of that shape will do, e.g.
            top-k values.
        static_weights: one for each teacher, ≥ 0.
        rows: labels, route, keys, epoch, and which teachers are available.

    Returns:
        (teachers, *rows), in float32 at least.

    Raises:
        ConfigError: an input that the weighting needs is missing, or weights that can't be.
        LabelError: a row without any teacher.
    """
    _check_row_inputs(mixture, rows)
    available = rows.available
    if available is None:
        available = teacher_logits.new_ones(teacher_logits.shape[:-1], dtype=torch.bool)
    static = _static(static_weights, teacher_logits)
    known = {
        **rows._asdict(),
        "mixture": mixture,
        "teacher_logits": teacher_logits,
        "static_weights": static,
        "available": available,
    }
    function = find_weighting(mixture.weighting)
    weights = function(**{name: known[name] for name in parameters_of(function)})
    if not isinstance(weights, Tensor) or weights.shape != available.shape:
        got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ConfigError(
            f"Weighting of teachers {getattr(function, '__qualname__', function)!r}: expected "
            f"weights of the shape {tuple(available.shape)}, one for each teacher in each row, "
            f"got {got}."
        )
    weights = weights.masked_fill(~available, 0.0)
    if mixture.weighting == "fixed":
        total = static.sum() if mixture.sums_losses else 1.0
        weights = weights / weights.sum(dim=0) * total
    elif not mixture.sums_losses:
        weights = weights / weights.sum(dim=0)
    if mixture.needs_labels:
        assert rows.labels is not None
        shares = static.expand(weights.shape).masked_fill(~available, 0.0)
        weights = torch.where(rows.labels < 0, shares / shares.sum(dim=0), weights)
    # Reading a tensor back waits for the device, so it is done only where rows can lack teachers.
    own = mixture.weighting not in BUILT_IN_WEIGHTINGS
    if rows.available is not None or mixture.needs("route") or own:
        _require_a_teacher(weights, mixture)
    return weights


def _check_row_inputs(mixture: Mixture, rows: RowInputs) -> None:
    """Refuse rows without what the weighting needs."""
    for given, needed, what in (
        (rows.labels, mixture.needs_labels, "the true labels"),
        (rows.route, mixture.needs("route"), "the column of teachers"),
        (rows.row_keys, mixture.needs("row_keys"), "the row keys"),
    ):
        if needed and given is None:
            raise ConfigError(
                f"Teachers weighted by {mixture.weighting!r} need {what}, and none came. Give it, "
                "or take another mixture, e.g. mean_logits."
            )


def _static(static_weights: Sequence[float | int] | Tensor, logits: Tensor) -> Tensor:
    """Check the static weights; (K, 1, …) to go with the rows."""
    values = [float(weight) for weight in static_weights]
    fit = len(values) == len(logits) and all(math.isfinite(value) for value in values)
    if not fit or min(values) < 0 or sum(values) <= 0:
        raise ConfigError(
            f"Weights of {len(logits)} teachers: expected one number ≥ 0 for each and a sum > 0, "
            f"got {values}."
        )
    column = torch.tensor(values, dtype=promoted(logits), device=logits.device)
    return column.view(-1, *[1] * (logits.dim() - 2))


def _require_a_teacher(weights: Tensor, mixture: Mixture) -> None:
    """Refuse rows in which no weight is left, rather than make up a target."""
    total = weights.sum(dim=0)
    bad = ~(total > 0)
    if bad.any():
        where = bad.nonzero()[:5].tolist()
        raise LabelError(
            f"No teacher for {int(bad.sum())} of {bad.numel()} rows (first at {where}), with the "
            f"weighting {mixture.weighting!r}. Each row needs an available teacher of positive "
            f"weight, and a route in 0..{len(weights) - 1}: look at the dropped teachers, and at "
            "the route column."
        )


def combine(
    mixture: Mixture,
    teacher_logits: Float[Tensor, " teachers *rows classes"],
    weights: Float[Tensor, " teachers *rows"],
    temperature: Temperature,
) -> Float[Tensor, "*rows classes"]:
    """Combine the logits of all teachers into one target.

    mean_logits: Σ_k w_k t_k.  mean_probs: T log Σ_k w_k softmax(t_k / T), whose softmax at T is
    the mean of the probabilities; it is a target for losses that a shift of all logits leaves
    alone, so not for mse and bce.

    Args:
        mixture: mean_logits or mean_probs.
        teacher_logits: raw; an entry under weight 0 may be anything.
        weights: of `teacher_weights`.
        temperature: a number, or one for each row.

    Returns:
        (*rows, classes), raw logits of the target, in float32 at least.

    Raises:
        ConfigError: with sum_losses there is no one target.
    """
    if mixture.sums_losses:
        raise ConfigError(
            "sum_losses has no single target: compute the loss of each teacher, and weigh its rows."
        )
    logits = teacher_logits.to(promoted(teacher_logits, weights))
    shares = weights.to(logits.dtype).unsqueeze(-1)
    if mixture.combination == "mean_logits":
        # 0 · −inf is NaN, and what an absent teacher left behind is no number to multiply.
        return (shares * logits.masked_fill(shares == 0, 0.0)).sum(dim=0)
    row_temperature = temperature
    if isinstance(temperature, Tensor) and temperature.dim() > 0:
        row_temperature = temperature.to(logits.dtype).unsqueeze(-1)
        temperature = temperature.expand(logits.shape[:-1])
    terms = log_probs(logits, temperature).masked_fill(shares == 0, -math.inf) + shares.log()
    return row_temperature * terms.logsumexp(dim=0)


def probability_shift(
    teacher_logits: Float[Tensor, "*rows classes"], labels: Int64[Tensor, "*rows"]
) -> Float[Tensor, "*rows classes"]:
    """Have a teacher that is wrong rank the true class first: swap its logit with the largest.

    z'_y = z_m, z'_m = z_y with m = argmax z (the first, where several tie).

    Args:
        teacher_logits: raw, (B, C) or (B, L, C); never written to, since labels are shared.
        labels: true classes; a negative one leaves its row unchanged.

    Returns:
        The shifted logits, a tensor of its own.

    Reference:
        Wen et al. 2019, arXiv:1911.07471; TextBrewer's `probability_shift`.
    """
    largest = teacher_logits.argmax(dim=-1, keepdim=True)
    target = labels.unsqueeze(-1)
    target = torch.where(target < 0, largest, target)
    lowered = teacher_logits.scatter(-1, largest, teacher_logits.gather(-1, target))
    return lowered.scatter(-1, target, teacher_logits.gather(-1, largest))
