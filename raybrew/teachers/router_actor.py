"""The pool's router, an actor: hands requests to replicas that a monitor watches.

    client ──keys──► PoolRouter ──requests──► client ──examples──► replica ──labels──► client

Only keys and counts pass it. Which replica answers a key is decided by `router.RoutingTable`;
`monitor` watches the replicas. Nothing here imports torch, so that the actor starts within a
second.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import ray
from ray import cloudpickle
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybrew.errors import Event, LabelsLost, RaybrewError, TeacherError
from raybrew.teachers import monitor
from raybrew.teachers.failure import ReplicaFailure
from raybrew.teachers.monitor import HostedTeacher, TeacherMonitor
from raybrew.teachers.router import Request

ATTEMPTS = 20
RETRY_S = 1.0
"""A router that can't be reached is called so often, at this interval."""
MAX_CONCURRENCY = 100_000
"""Calls that an actor of the pool holds at once; the credits of clients are the limit."""


@dataclass(frozen=True)
class PoolAddress:
    """How to reach a pool; can be sent to any process of the cluster.

    Args:
        router: the actor.
        teachers: by name.
    """

    router: ActorHandle
    teachers: Mapping[str, HostedTeacher]


class PoolRouter:
    """The `Router` of a pool; a plain class that `start_router` wraps in an actor.

    Args:
        teachers: by name.
        restarted: whether a router before this one died.
    """

    def __init__(self, teachers: Mapping[str, HostedTeacher], *, restarted: bool = False):
        self._events: list[Event] = []
        self._teachers = {
            name: TeacherMonitor(name, hosted, self._events) for name, hosted in teachers.items()
        }
        self._watching: list[asyncio.Task] = []
        if restarted:
            what = "it was started again, and asks the replicas what they do"
            self._events.append(Event("router died", "the teachers' router", what))

    async def begin(self) -> None:
        """Watch the replicas from now on: the teachers are loaded, or this is a new life."""
        if not self._watching:
            replicas = [each for teacher in self._teachers.values() for each in teacher.replicas]
            self._watching = [asyncio.create_task(replica.watch()) for replica in replicas]

    async def assign(
        self,
        teacher: str,
        keys: np.ndarray,
        tokens: np.ndarray,
        *,
        most_tokens: int | None,
        avoid: Sequence[int] = (),
    ) -> list[Request]:
        """Split a question into requests, when there is a replica; see `RoutingTable.assign`.

        Raises:
            LabelsLost: every label was in the store, so that its replicas left or never started.
            TeacherDropped: the teacher has no replica, and its policy is `drop`.
            TeacherError: the same with policy `fail`.
        """
        await self.begin()
        while True:
            hosted = self._teachers.get(teacher)
            if hosted is None or hosted.left:
                raise LabelsLost(
                    f"teacher {teacher!r}: {len(keys)} labels are missing from the store, which "
                    "had all of its labels before; its replicas start again to compute them"
                )
            requests = hosted.table.assign(
                keys, tokens, most_tokens=most_tokens, avoid=avoid, now_s=time.monotonic()
            )
            if requests is not None:
                return requests
            hosted.decide()
            await asyncio.sleep(monitor.POLL_S / 2)

    async def finished(self, teacher: str, request: Request, computed: int) -> None:
        """Note an answer, and how many of its rows cost a forward."""
        await self.begin()
        hosted = self._teachers[teacher]
        hosted.table.finished(request.replica, request.number, time.monotonic())
        if computed:
            hosted.replicas[request.replica].failures = 0

    async def refused(self, teacher: str, request: Request) -> None:
        """Note that a request ended in an error."""
        self._teachers[teacher].table.refused(request.replica, request.number)

    async def failed(
        self, teacher: str, replica: int, epoch: int, failure: ReplicaFailure | None
    ) -> None:
        """Note that a replica failed in this epoch; see `ReplicaState.failed`."""
        self._teachers[teacher].replicas[replica].failed(epoch, failure)

    async def epochs(self, teacher: str) -> list[int]:
        """Return the epoch of each replica; none if the teacher has left."""
        await self.begin()  # a client that waits for an answer calls nothing else
        hosted = self._teachers[teacher]
        return [] if hosted.left else [replica.epoch for replica in hosted.replicas]

    async def release(self, teacher: str) -> bool:
        """Let the replicas of a teacher leave whose labels are all on disk.

        Returns:
            Whether they may be ended: not while a client waits for an answer.
        """
        hosted = self._teachers[teacher]
        await hosted.check_all()  # for its last metrics
        hosted.left = hosted.table.is_idle()
        return hosted.left

    async def take_events(self) -> list[Event]:
        """Return the faults since the last call."""
        taken = list(self._events)
        self._events.clear()
        return taken

    async def metrics(self) -> dict[str, dict[str, float]]:
        """Return, by teacher, what its replicas did in all their lives; asks those that are up.

        What a replica computes between its last health check and its death is not counted.
        """
        await asyncio.gather(*(teacher.check_all() for teacher in self._teachers.values()))
        return {name: teacher.metrics() for name, teacher in self._teachers.items()}


class _RouterActor(PoolRouter):
    # Bytes: an actor whose arguments hold handles may not come back (Ray #53727).
    def __init__(self, teachers: bytes):
        context: Any = ray.get_runtime_context()
        restarted = context.was_current_actor_reconstructed
        super().__init__(cloudpickle.loads(teachers), restarted=restarted)


def start_router(teachers: Mapping[str, HostedTeacher]) -> ActorHandle:
    """Start a router on this process's node, so that no other node ends it; it costs no CPU.

    Args:
        teachers: by name; the caller holds their replicas for as long as the router lives.
    """
    here = ray.get_runtime_context().get_node_id()
    actor: Any = ray.remote(_RouterActor)
    return actor.options(
        num_cpus=0,
        max_concurrency=MAX_CONCURRENCY,
        max_restarts=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
    ).remote(cloudpickle.dumps(dict(teachers)))  # pyright: ignore[reportPrivateImportUsage]


def remote_router(actor: ActorHandle) -> PoolRouter:
    """Return a router whose methods call an actor's.

    They raise a `RaybrewError` as the actor raised it, and a `TeacherError` when the actor can't
    be reached, however often that is tried: one that died starts again.
    """
    return cast(PoolRouter, _RemoteRouter(actor))


class _RemoteRouter:
    def __init__(self, actor: ActorHandle):
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **named: Any) -> Any:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    return await getattr(self._actor, name).remote(*arguments, **named)
                except RayTaskError as error:
                    if isinstance(error.cause, RaybrewError):
                        raise error.cause from None
                    raise
                except RayActorError as error:
                    if attempt == ATTEMPTS:
                        message = f"the teachers' router can't be reached: {error}"
                        raise TeacherError(message) from error
                    await asyncio.sleep(RETRY_S)

        return call
