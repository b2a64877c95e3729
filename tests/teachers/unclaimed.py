"""`faulty` in a process whose claims on labels say nothing.

With them, two replicas that are asked for one label compute it once whoever sends them there: one
waits for the other. Without them, it shows who asks whom.
"""

import numpy as np

from raybrew.labels.claims import Claims, Taken
from tests.teachers.faulty import faulty

__all__ = ["faulty"]


def _all_mine(_: Claims, keys: np.ndarray, *, waiting: bool = False) -> Taken:
    return Taken(np.ones(len(keys), bool), moved=False)


Claims.take = _all_mine  # type: ignore[method-assign]
