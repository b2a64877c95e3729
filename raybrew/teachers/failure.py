"""A replica whose device or memory failed. No torch here: the router's process reads it, too.

forward ──CUDA error, out of memory──► ReplicaFailure ──► asker ──► desk: a new process, and for
                                                                    memory a smaller batch
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raybrew.devices import DeviceFault

__all__ = ["ReplicaFailure"]


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
