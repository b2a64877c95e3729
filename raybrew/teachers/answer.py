"""What a replica answers, and what it says of itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from raybrew.labels.payload import Payload

__all__ = ["Answer", "ReplicaFigures"]


@dataclass(frozen=True)
class Answer:
    """A replica's answer to a question of n examples.

    Args:
        payloads: by signal name, n rows in the order of the question; empty if nothing but the
            filling of the store was asked for.
        computed: which rows cost a forward, bool (n,).
        left: rows that other processes are at, int64; none unless nobody was to wait for them.
    """

    payloads: dict[str, Payload]
    computed: np.ndarray
    left: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @staticmethod
    def joined(answers: "Sequence[Answer]") -> "Answer":
        """Return the answer to the questions one after another, of which there is one at least."""
        payloads = {
            name: Payload.concat([answer.payloads[name] for answer in answers])
            for name in answers[0].payloads
        }
        return Answer(payloads, np.concatenate([answer.computed for answer in answers]))

    def rows(self, start: int, stop: int) -> "Answer":
        """Return the answer to a part of the question."""
        payloads = {name: payload.slice(start, stop) for name, payload in self.payloads.items()}
        return Answer(payloads, self.computed[start:stop])


@dataclass
class ReplicaFigures:
    """What a replica has done since it started.

    Args:
        examples: forwards of single examples.
        hits: labels that were asked for and already known.
        batches: forwards.
        tokens: real tokens that went through the teacher.
        padded_tokens: the same with padding.
        compute_s: time in the teacher, seconds.
        payload_bytes: bytes of labels that were computed.
    """

    examples: int = 0
    hits: int = 0
    batches: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    compute_s: float = 0.0
    payload_bytes: int = 0
