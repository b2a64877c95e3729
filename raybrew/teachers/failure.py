"""What fails at a teacher, and what is decided about it.

Failures of a device or of memory, replicas that hang, teachers without a replica.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

# A replica whose device or memory failed. No torch here: the router's process reads it, too.
#
# forward ──CUDA error, out of memory──► ReplicaFailure ──► asker ──► desk: a new process, and for
#                                                                     memory a smaller batch

if TYPE_CHECKING:
    from raybrew.models.devices import DeviceFault


class ReplicaFailure(Exception):
    """A replica failed, not what it was asked: its process computes nothing any more.

    Args:
        fault: what failed.
        why: the error's message.
        life: of which process of the replica.
        examples: of the forward that it happened in; 0 if there was none.
        tokens: of that forward, padding included.
        alone: whether the forward was for one request alone.
    """

    def __init__(
        self,
        fault: DeviceFault,
        why: str,
        life: str = "",
        examples: int = 0,
        tokens: int = 0,
        alone: bool = False,
    ):
        super().__init__(fault, why, life, examples, tokens, alone)
        self.fault: DeviceFault = fault
        self.why, self.life = why, life
        self.examples, self.tokens, self.alone = examples, tokens, alone

    def __str__(self) -> str:
        forward = f" in a forward of {self.examples} examples, {self.tokens} tokens"
        return f"{self.why}{forward if self.examples else ''}"

    @property
    def smaller(self) -> int | None:
        """Tokens of a forward that may fit; None if a smaller one is of no use."""
        return self.tokens // 2 if self.fault == "memory" and self.examples > 1 else None

    @property
    def blames(self) -> bool:
        """Whether the request may be at fault, not the replica."""
        return self.alone and self.examples > 0 and self.smaller is None


# What is decided about a replica that is late, and about a teacher that nobody hosts. Pure.
#
# a forward takes longer than `deadline_s`, or the process says nothing ──► kill, Ray restarts it
# no replica answers, for `lost_after_s` or for good ──► fail | wait | drop

OnFailure = Literal["fail", "wait", "drop"]

SILENCE_S = 30.0
"""What a process may take to answer a health check beyond the longest forward."""
MAX_RESTARTS = 3
"""Losses in a row, without an answer in between, after which a replica isn't started again."""
MAX_FAILURES_OF_REQUEST = 4
"""Losses of one request, for each replica of its teacher, after which it is suspected itself."""


class FailureDecision(Enum):
    """What becomes of questions to a teacher without a replica."""

    WAIT = "wait"
    FAIL = "fail"
    DROP = "drop"


@dataclass(frozen=True)
class FailurePolicy:
    """How long one waits for a teacher, and what comes then.

    Args:
        on_loss: what happens when it is gone: the run fails, waits for it, or goes on without it.
        deadline_s: longest forward, seconds; one that takes longer hangs.
        lost_after_s: time without any replica after which the teacher counts as gone, seconds.
    """

    on_loss: OnFailure = "fail"
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

    def is_unresponsive(self, silent_s: float) -> bool:
        """Return whether a process that was silent for so long is to be ended."""
        return silent_s > self.deadline_s + SILENCE_S

    def verdict(self, down_s: float, *, gone: bool) -> FailureDecision:
        """Decide on questions while no replica is up.

        Args:
            down_s: for how long.
            gone: whether all of them were given up.
        """
        if gone and self.on_loss == "wait":
            return FailureDecision.FAIL  # nobody will ever bring it back
        if self.on_loss == "wait" or not (gone or down_s > self.lost_after_s):
            return FailureDecision.WAIT
        return FailureDecision.DROP if self.on_loss == "drop" else FailureDecision.FAIL
