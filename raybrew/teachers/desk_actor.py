"""The desk as an actor. Nothing here imports torch, so that it is there within a second."""

from collections.abc import Mapping
from typing import Any

import ray
from ray import cloudpickle
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybrew.teachers.desk import Desk
from raybrew.teachers.watched import Member

__all__ = ["start_desk"]


def start_desk(members: Mapping[str, Member], max_concurrency: int) -> ActorHandle:
    """Start a desk on this process's node, whose death both die of; it costs no CPU.

    Args:
        members: by name; whoever starts it holds their replicas for as long as there is a desk.
        max_concurrency: calls that wait in it at once.
    """
    here = ray.get_runtime_context().get_node_id()
    actor: Any = ray.remote(_DeskActor)
    return actor.options(
        num_cpus=0,
        max_concurrency=max_concurrency,
        max_restarts=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
    ).remote(cloudpickle.dumps(dict(members)))  # pyright: ignore[reportPrivateImportUsage]


class _DeskActor(Desk):
    # Its members as bytes: an actor whose arguments hold handles may not come back (Ray #53727).
    def __init__(self, members: bytes):
        context: Any = ray.get_runtime_context()
        super().__init__(cloudpickle.loads(members), anew=context.was_current_actor_reconstructed)
