"""`faulty` in a process whose leases of labels mean nothing.

With them, two replicas that are asked for one label compute it once whatever sends them there: one
waits for the other. Without them, it shows who asks whom.
"""

import numpy as np

from raybrew.labels.leases import LeaseResult, Leases
from tests.teachers.faulty import faulty as faulty


def _all_mine(_: Leases, keys: np.ndarray, *, waiting: bool = False) -> LeaseResult:
    return LeaseResult(np.ones(len(keys), bool), released=False)


Leases.acquire = _all_mine  # type: ignore[method-assign]
