"""What the objective is told of a batch besides the student's answer."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raybrew.labels.tensors import SoftLabel

__all__ = ["BatchFacts", "Position", "SoftLabels"]

SoftLabels = Mapping[str, Mapping[str, SoftLabel]]
"""By teacher, by name of the signal: a row for each example."""


@dataclass(frozen=True)
class BatchFacts:
    """What the denominators depend on, of a global batch.

    Args:
        labels: (B, …), or flat over the tokens of the batch, as the kind of task counts them.
        lengths: real tokens of each example as the student reads it, int64 (B,); needed for
            matches alone.
        parts: positions in the batch of the rows of each forward pass, over all ranks and
            micro-batches; one pass if left out.
        unreached: rows of logits for which no teacher has an answer.
    """

    labels: np.ndarray
    lengths: np.ndarray | None = None
    parts: tuple[np.ndarray, ...] | None = None
    unreached: int = 0

    def lengths_of_parts(self) -> list[np.ndarray]:
        """Return the lengths of the rows of each forward pass."""
        assert self.lengths is not None, "matches are divided by counts of tokens"
        if self.parts is None:
            return [self.lengths]
        return [self.lengths[part] for part in self.parts]


@dataclass(frozen=True)
class Position:
    """Where in the run a step is.

    Args:
        progress: steps taken before it, as a share of all steps, in [0, 1).
        epoch: from 0.
        step: from 0.
    """

    progress: float = 0.0
    epoch: int = 0
    step: int = 0
