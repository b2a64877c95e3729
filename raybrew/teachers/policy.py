"""What is decided about a replica that is late, and about a teacher that nobody hosts. Pure.

a forward takes longer than `deadline_s`, or the process says nothing ──► kill, Ray restarts it
no replica answers, for `lost_after_s` or for good ──► fail | wait | drop
"""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

__all__ = ["LossPolicy", "OnLoss", "Verdict"]

OnLoss = Literal["fail", "wait", "drop"]

SILENCE_S = 30.0
"""What a process may take to answer a health check beyond the longest forward."""
MAX_RESTARTS = 3
"""Losses in a row, without an answer in between, after which a replica isn't started again."""
MAX_LOSSES = 4
"""Losses of one request, for each replica of its teacher, after which it is suspected itself."""


class Verdict(Enum):
    """What becomes of questions to a teacher without a replica."""

    WAIT = "wait"
    FAIL = "fail"
    DROP = "drop"


@dataclass(frozen=True)
class LossPolicy:
    """How long one waits for a teacher, and what comes then.

    Args:
        on_loss: what happens when it is gone: the run fails, waits for it, or goes on without it.
        deadline_s: longest forward, seconds; one that takes longer hangs.
        lost_after_s: time without any replica after which the teacher counts as gone, seconds.
    """

    on_loss: OnLoss = "fail"
    deadline_s: float = 600.0
    lost_after_s: float = 120.0

    @property
    def max_restarts(self) -> int:
        """How often a replica is restarted without having answered in between; -1: always."""
        return -1 if self.on_loss == "wait" else MAX_RESTARTS

    def gives_up(self, losses: int) -> bool:
        """Return whether a replica is not started again.

        Args:
            losses: in a row, without an answer in between. Those for memory that a smaller batch
                follows are none: they end by themselves.
        """
        return 0 <= self.max_restarts < losses

    def hangs(self, forward_s: float) -> bool:
        """Return whether a forward that has taken so long is to be ended."""
        return forward_s > self.deadline_s

    def is_dumb(self, silent_s: float) -> bool:
        """Return whether a process that was silent for so long is to be ended."""
        return silent_s > self.deadline_s + SILENCE_S

    def verdict(self, down_s: float, *, gone: bool) -> Verdict:
        """Decide on questions while no replica is up.

        Args:
            down_s: for how long.
            gone: whether all of them were given up.
        """
        if gone and self.on_loss == "wait":
            return Verdict.FAIL  # nobody will ever bring it back
        if self.on_loss == "wait" or not (gone or down_s > self.lost_after_s):
            return Verdict.WAIT
        return Verdict.DROP if self.on_loss == "drop" else Verdict.FAIL
