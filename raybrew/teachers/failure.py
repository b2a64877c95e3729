"""What fails at a teacher, and what is decided about it: values without Ray, clock or torch.

forward ──CUDA error, out of memory──► ReplicaFailure ──► client ──► router: a new process, and
after out of memory smaller forwards
a forward longer than `deadline_s`, or a process that doesn't answer ──► kill, Ray restarts it
no replica for `lost_after_s`, or all of them given up ──► fail | wait | drop
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from raybrew.models.devices import DeviceFault

OnFailure = Literal["fail", "wait", "drop"]

UNRESPONSIVE_S = 30.0
"""What a process may take to answer a health check beyond the longest forward."""
MAX_RESTARTS = 3
"""Failures in a row, without an answer in between, after which a replica isn't started again."""
MAX_FAILURES_OF_REQUEST = 4
"""Failures of one request, for each replica of its teacher, after which the request is at fault."""


class ReplicaFailure(Exception):
    """The device or the memory of a replica failed; its process can compute nothing after that.

    Args:
        fault: what failed.
        why: the error's message.
        life: which process of the replica.
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
        """Tokens of a forward that may fit; None if a smaller forward is of no use."""
        return self.tokens // 2 if self.fault == "memory" and self.examples > 1 else None

    @property
    def blames(self) -> bool:
        """Whether the request may be at fault, not the replica."""
        return self.alone and self.examples > 0 and self.smaller is None


class FailureDecision(Enum):
    """What happens to requests of a teacher without a replica."""

    WAIT = "wait"
    FAIL = "fail"
    DROP = "drop"


@dataclass(frozen=True)
class FailurePolicy:
    """How long a run waits for a teacher, and what follows.

    Args:
        on_failure: what happens when it has no replica: the run fails, waits for one, or goes on
            without the teacher.
        deadline_s: longest forward, seconds; one that takes longer hangs.
        lost_after_s: time without any replica after which the teacher counts as lost, seconds.
    """

    on_failure: OnFailure = "fail"
    deadline_s: float = 600.0
    lost_after_s: float = 120.0

    @property
    def max_restarts(self) -> int:
        """How often a replica is restarted without an answer in between; -1: always."""
        return -1 if self.on_failure == "wait" else MAX_RESTARTS

    def gives_up(self, failures: int) -> bool:
        """Return whether a replica is not started again.

        Args:
            failures: in a row, without an answer in between. Those for memory that a smaller batch
                follows don't count: they end by themselves.
        """
        return 0 <= self.max_restarts < failures

    def hangs(self, forward_s: float) -> bool:
        """Return whether a forward that has taken so long is to be ended."""
        return forward_s > self.deadline_s

    def is_unresponsive(self, silent_s: float) -> bool:
        """Return whether a process that was silent for so long is to be ended."""
        return silent_s > self.deadline_s + UNRESPONSIVE_S

    def decide(self, down_s: float, *, all_given_up: bool) -> FailureDecision:
        """Decide on requests while no replica is up.

        Args:
            down_s: for how long, seconds.
            all_given_up: whether no replica is started again.
        """
        if all_given_up and self.on_failure == "wait":
            return FailureDecision.FAIL  # no replica can come back
        if self.on_failure == "wait" or not (all_given_up or down_s > self.lost_after_s):
            return FailureDecision.WAIT
        return FailureDecision.DROP if self.on_failure == "drop" else FailureDecision.FAIL
