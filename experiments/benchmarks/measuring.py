"""What a figure is, and contenders that take turns."""

import gc
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from rich.progress import track

# One figure of a benchmark: what was measured, what is to be reached, whether it is.

Bound = Literal["≤", "≥", "="]


@dataclass(frozen=True)
class Record:
    """A figure.

    Args:
        name: of the figure, unique over all benchmarks.
        value: the median, where it was measured several times.
        unit: of value, target and spread.
        target: what is to be reached.
        bound: which side of the target is good.
        spread: lower and upper quartile of the repetitions.
        repetitions: how often it was measured; 1 for what is counted rather than timed.
        note: what else has to be known: threads, sizes, what bounds it.
    """

    name: str
    value: float
    unit: str
    target: float
    bound: Bound
    spread: tuple[float, float] | None = None
    repetitions: int = 1
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        if self.bound == "=":
            return self.value == self.target
        return self.value <= self.target if self.bound == "≤" else self.value >= self.target

    def to_plain(self) -> dict[str, Any]:
        """Return the record as JSON can hold it."""
        return {**asdict(self), "met": self.met}


def ratio(
    name: str,
    above: Sequence[float],
    below: Sequence[float],
    *,
    to_reach: tuple[Bound, float],
    note: str = "",
    unit: str = "×",
) -> Record:
    """Return the median of the pairs' ratios: what drifts on the machine drifts in both of a pair.

    Args:
        name: of the figure.
        above: of each repetition, what is divided.
        below: of the same repetition, what it is divided by.
        to_reach: which side of the target is good, and the target.
        note: what else has to be known.
        unit: of the ratio.
    """
    ratios = np.asarray(above, float) / np.asarray(below, float)
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    bound, target = to_reach
    return Record(name, middle, unit, target, bound, (low, high), len(ratios), note)


def records_of(function: str) -> list[Record]:
    """Run a benchmark in this process.

    Here and not where it is called: a fresh process finds it by its import path.
    """
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)()


# Times of several contenders whose repetitions alternate, in an order drawn for each round.
#
# A machine that is shared gets slower and faster by itself. Contenders that take turns see the same
# of it, so their ratio says more than either time.


def interleaved(
    contenders: Mapping[str, Callable[[], float]], repetitions: int, *, what: str, seed: int = 0
) -> dict[str, list[float]]:
    """Run every contender once a round.

    Args:
        contenders: by name; each returns what it measured, its own set-up left out.
        repetitions: rounds.
        what: title of the progress bar.
        seed: of the order within each round.

    Returns:
        By name, a value a round.
    """
    order = np.random.default_rng(seed)
    values: dict[str, list[float]] = {name: [] for name in contenders}
    turns = [name for _ in range(repetitions) for name in order.permutation(list(contenders))]
    for name in track(turns, what, transient=True):
        gc.collect()
        values[name].append(contenders[name]())
    return values
