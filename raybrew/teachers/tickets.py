"""What the router hands out, and what it counts."""

from dataclasses import dataclass

import numpy as np

__all__ = ["RouterCounts", "Ticket"]


@dataclass(frozen=True)
class Ticket:
    """A part of a question, handed to a replica.

    Args:
        number: of the ticket.
        replica: who answers.
        epoch: which life of the replica: it has another one after each loss.
        rows: positions in the question, int64 (n,).
    """

    number: int
    replica: int
    epoch: int
    rows: np.ndarray


@dataclass
class RouterCounts:
    """What became of the questions, in examples.

    Args:
        forwards: computed and reported, by their asker or by the replica itself.
        retried: asked again, because the replica that had them was lost.
        recomputed: of `forwards`, those of labels that had been computed before: their replica was
            lost before they were on disk, or what was on disk is gone.
        losses: replicas lost.
    """

    forwards: int = 0
    retried: int = 0
    recomputed: int = 0
    losses: int = 0
