"""Labels to compute ahead of their use, as a job of the pool's."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from raybrew.data.encoding import EncodedView

__all__ = ["Filling"]


@dataclass(frozen=True)
class Filling:
    """Labels to compute ahead of their use.

    Args:
        teacher: whose labels.
        folder: the encoded split that holds the rows.
        view_name: its view that the teacher reads.
        view: that view.
        rows: rows to label, int64 (n,), of different content.
        on_done: called with the number of rows of each request that is done.
    """

    teacher: str
    folder: str
    view_name: str
    view: EncodedView
    rows: np.ndarray
    on_done: Callable[[int], None]
