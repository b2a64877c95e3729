"""The rules by which teachers are weighed in each row, by name; the user's own too."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raybrew.errors import ConfigError
from raybrew.losses.mixture.random_pick import random_pick
from raybrew.losses.soft.log_space import expectation, log_probs
from raybrew.losses.soft.options import unknown_name
from raybrew.models.importing import import_callable

__all__ = ["BUILT_IN", "RULES", "Rows", "Rule", "as_rule", "rule_of"]

# Where exp would meet an infinite cross-entropy (a label at a masked class) on every teacher.
LARGEST_CE = 1e30


@dataclass(frozen=True, eq=False)
class Rows:
    """What a weighting may look at; tensors (K, *rows), or (*rows).

    Args:
        score: what `softmax` weighs by.
        alpha: factor on it.
        seed: of the random pick.
        logits: raw, (K, *rows, classes).
        static: the configured weights, (K, 1, …).
        labels: true classes; negative = none.
        route: the teacher's index in each row.
        row_keys: the bits of each row's key.
        epoch: from 0.
        available: False where a teacher has no answer.
    """

    score: str
    alpha: float | int
    seed: int
    logits: Tensor
    static: Tensor
    labels: Tensor
    route: Tensor
    row_keys: Tensor
    epoch: int
    available: Tensor

    def cross_entropies(self) -> Tensor:
        """Take −log softmax(t_k)_y in nats; rows without a label hold a number of no meaning."""
        target = self.labels.clamp(min=0).expand(self.available.shape).unsqueeze(-1)
        picked = log_probs(self.logits, 1.0).gather(-1, target).squeeze(-1)
        return (-picked).clamp(max=LARGEST_CE)

    def softmax(self, scores: Tensor) -> Tensor:
        """Take the softmax over the teachers that are available."""
        return scores.masked_fill(~self.available, -math.inf).softmax(dim=0)

    def only(self, index: Tensor) -> Tensor:
        """Give weight 1 to one teacher in each row."""
        teachers = torch.arange(len(self.available), device=index.device)
        column = teachers.view(-1, *[1] * index.dim())
        return (column == index.unsqueeze(0)).to(self.static.dtype)


def _fixed(rows: Rows) -> Tensor:
    return rows.static.expand(rows.available.shape)


def _softmax(rows: Rows) -> Tensor:
    score = rows.score
    if score == "neg_ce":
        return rows.softmax(-rows.cross_entropies() * rows.alpha)
    teacher_log_probs = log_probs(rows.logits, 1.0)
    probs = teacher_log_probs.exp()
    if score == "neg_entropy":
        return rows.softmax(expectation(probs, teacher_log_probs) * rows.alpha)
    return rows.softmax(probs.amax(dim=-1) * rows.alpha)


def _ca_mkd(rows: Rows) -> Tensor:
    # The K of the formula is that of the row; a teacher alone has weight 1.
    others = rows.available.sum(dim=0) - 1
    shares = rows.softmax(rows.cross_entropies())
    return torch.where(others > 0, (1 - shares) / others.clamp(min=1), 1.0)


def _mt_bert(rows: Rows) -> Tensor:
    weights = 1 / (1 + rows.cross_entropies())
    # Each teacher's weight stands by itself, so a missing one is made up for by the count.
    return weights * len(rows.available) / rows.available.sum(dim=0).clamp(min=1)


def _min_ce(rows: Rows) -> Tensor:
    errors = rows.cross_entropies().masked_fill(~rows.available, math.inf)
    return rows.only(errors.argmin(dim=0))


def _random(rows: Rows) -> Tensor:
    keys = rows.row_keys.view(torch.int64)
    return rows.only(random_pick(keys, rows.static, rows.available, rows.seed, rows.epoch))


def _route(rows: Rows) -> Tensor:
    return rows.only(rows.route)


@dataclass(frozen=True)
class Rule:
    """A weighting: a function of the rows, and which side inputs it can't do without.

    Args:
        function: Rows -> weights ≥ 0, (K, *rows).
        needs: among `labels`, `route`, `row_keys`.
    """

    function: Callable[[Rows], Tensor]
    needs: frozenset[str] = frozenset()


LABELS = frozenset({"labels"})
RULES: dict[str, Rule] = {
    "fixed": Rule(_fixed),
    "softmax": Rule(_softmax),
    "ca_mkd": Rule(_ca_mkd, LABELS),
    "mt_bert": Rule(_mt_bert, LABELS),
    "min_ce": Rule(_min_ce, LABELS),
    "random": Rule(_random, frozenset({"row_keys"})),
    "route": Rule(_route, frozenset({"route"})),
}
BUILT_IN = frozenset(RULES)
SIDE_INPUTS = ("labels", "route", "row_keys")
OWN_INPUTS = ("teacher_logits", "static_weights", "available", "epoch", *SIDE_INPUTS)


@dataclass(frozen=True)
class OwnFunction:
    """A weighting of the user's: a function of what its parameters name."""

    function: Callable[..., Tensor]

    def __call__(self, rows: Rows) -> Tensor:
        """Call it, and refuse what isn't one weight for each teacher in each row."""
        known = {
            "teacher_logits": rows.logits,
            "static_weights": rows.static,
            "available": rows.available,
            "epoch": rows.epoch,
            "labels": rows.labels,
            "route": rows.route,
            "row_keys": rows.row_keys,
        }
        asked = inspect.signature(self.function).parameters
        weights = self.function(**{name: known[name] for name in asked})
        if not isinstance(weights, Tensor) or weights.shape != rows.available.shape:
            got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise ConfigError(
                f"Weighting of teachers {_name_of(self.function)}: expected weights of the shape "
                f"{tuple(rows.available.shape)}, one for each teacher in each row, got {got}."
            )
        return weights


def as_rule(name: str, value: Any) -> Rule:
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
    if isinstance(value, Rule):
        return value
    if not callable(value):
        raise ConfigError(
            f"Weighting of teachers {name!r}: expected a function, got {type(value).__name__}."
        )
    function: Callable[..., Any] = value
    parameters = set(inspect.signature(function).parameters)
    unknown = sorted(parameters - set(OWN_INPUTS))
    if unknown:
        raise ConfigError(
            f"Weighting of teachers {name!r}: expected parameters among {', '.join(OWN_INPUTS)}, "
            f"got {', '.join(unknown)}."
        )
    return Rule(OwnFunction(function), frozenset(parameters & set(SIDE_INPUTS)))


def rule_of(name: str) -> Rule:
    """Find a weighting by name, or the user's by its import path.

    Raises:
        ConfigError: neither leads anywhere.
    """
    if ":" in name:
        return as_rule(name, import_callable(name, "weighting of teachers"))
    if name not in RULES:
        raise unknown_name("weighting of teachers", name, RULES)
    return RULES[name]


def _name_of(function: Callable[..., Tensor]) -> str:
    return repr(getattr(function, "__qualname__", function))
