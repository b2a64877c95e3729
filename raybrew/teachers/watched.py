"""A teacher of the pool as the desk sees it."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ray.actor import ActorHandle

from raybrew.teachers.ledger import Entry
from raybrew.teachers.policy import LossPolicy
from raybrew.teachers.router import Router

__all__ = ["Member", "Watched"]


@dataclass(frozen=True)
class Member:
    """A teacher of the pool.

    Args:
        replicas: handles of the actors that host it.
        policy: what is decided when they fail.
        batch_tokens: most tokens of a forward.
    """

    replicas: Sequence[ActorHandle]
    policy: LossPolicy
    batch_tokens: int


@dataclass
class Watched:
    """What the desk knows of a teacher."""

    member: Member
    router: Router
    # By replica, by life of it: what it last said of itself.
    lives: list[dict[str, dict[str, float]]]
    gone: list[bool]
    seen_s: list[float]
    down_since: float | None = None
    ended: set[str] = field(default_factory=set)
    # Lives that were said to wait for other runs.
    patient: set[str] = field(default_factory=set)
    # By replica: marks of the looks since it has had nothing to do.
    idle: dict[int, list[int]] = field(default_factory=dict)
    # By replica: which life of it was heard last, and up to which place of its ledger.
    heard: dict[int, tuple[str, int]] = field(default_factory=dict)
    # By replica: what its life told, as far as that is perhaps not on disk.
    told: dict[int, deque[Entry]] = field(default_factory=dict)
    dropped: bool = False
    # By replica: most tokens of a forward, where memory was too small for more.
    batch_tokens: dict[int, int] = field(default_factory=dict)
    # By replica: losses in a row, without an answer in between; see `LossPolicy.gives_up`.
    losses: Counter[int] = field(default_factory=Counter)
    last_loss: str = ""
    # Whether its replicas have left, since all of its labels are in the store.
    left: bool = False
