"""How examples of different lengths are filled up to one batch."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Padding"]


@dataclass(frozen=True)
class Padding:
    """What fills shorter examples up, and where.

    Args:
        token_id: of the token that fills.
        side: where it stands.
        is_read: whether the model's answer depends on padding, masked or not: answers that have to
            be those of the example alone come from batches of one length.
    """

    token_id: int
    side: Literal["right", "left"] = "right"
    is_read: bool = False
