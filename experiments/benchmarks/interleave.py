"""Times of several contenders whose repetitions alternate, in an order drawn anew for each round.

A machine that is shared gets slower and faster by itself. Contenders that take turns see the same
of it, so their ratio says more than either time.
"""

import gc
from collections.abc import Callable, Mapping

import numpy as np
from rich.progress import track


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
