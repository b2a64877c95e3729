"""Where a pool's actors are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ray.actor import ActorHandle

__all__ = ["PoolAddress"]


@dataclass(frozen=True)
class PoolAddress:
    """How to reach a pool; can be sent to any process of the cluster.

    Args:
        desk: the desk's actor.
        replicas: by teacher, the handles of its replicas.
        batch_tokens: by teacher, most tokens of a forward.
    """

    desk: ActorHandle
    replicas: Mapping[str, Sequence[ActorHandle]]
    batch_tokens: Mapping[str, int]
