"""The teachers of a job as Ray actors: placed together, started, asked for labels, stopped.

Each replica is a `ReplicaHost` in an actor of its own, on resources that are reserved in a
placement group for each teacher before any of them starts: either all of them fit, or none starts.
A teacher may leave before the others; its resources are free then. A `PoolRouter` on the driver's
node hands requests to them and watches them.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raybrew.data.split import batches_by_length
from raybrew.errors import Event, TeacherDropped, TeacherError
from raybrew.labels.remote import StoreSpec
from raybrew.teachers.client import PoolClient, PrecomputeRequest, as_raised
from raybrew.teachers.failure import FailurePolicy, ReplicaFailure
from raybrew.teachers.host import ReplicaHost
from raybrew.teachers.monitor import HostedTeacher
from raybrew.teachers.router_actor import MAX_CONCURRENCY, PoolAddress, remote_router, start_router
from raybrew.teachers.teacher import ResolvedTeacher

logger = logging.getLogger(__name__)

PLACEMENT_TIMEOUT_S = 120.0
START_TIMEOUT_S = 600.0
FILL_AHEAD = 2
"""Requests a replica has when the store is filled: it is never idle."""


class TeacherPool:
    """Running teachers; a context manager that stops them."""

    def __init__(self, teachers: Sequence[ResolvedTeacher], store: StoreSpec | str):
        self._groups = _reserve(teachers)
        hosted = {each.name: _start(each, store, self._groups[each.name]) for each in teachers}
        self.address = PoolAddress(start_router(hosted), hosted)
        self._router = remote_router(self.address.router)
        self._client = PoolClient(self.address)

    def __enter__(self) -> "TeacherPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def teachers(self) -> set[str]:
        """Those that have not left."""
        return set(self._groups)

    def wait(self) -> None:
        """Wait until every teacher is loaded.

        Raises:
            TeacherError: one can't be loaded, or takes longer than `START_TIMEOUT_S`.
        """
        until = time.monotonic() + START_TIMEOUT_S
        loading = [
            (name, hosted.policy.max_restarts, handle, handle.load.remote())
            for name, hosted in self.address.teachers.items()
            for handle in hosted.replicas
        ]
        for each in loading:
            _wait_until_loaded(*each, until)
        self._client.wait_for(self._router.begin())

    def fill(self, requests: Sequence[PrecomputeRequest]) -> set[str]:
        """Compute labels into the store, every replica of every teacher at its full speed.

        What was computed is on disk afterwards, also when this is interrupted or fails.

        Returns:
            The teachers that were dropped.

        Raises:
            TeacherError: a teacher fails.
        """
        dropped: set[str] = set()
        try:
            # What another run computes is left to it, and waited for when all else is done.
            left = self._work_off(requests, dropped, patient=False)
            self._work_off(left, dropped, patient=True)
        finally:
            self.flush()
        return dropped

    def _work_off(
        self, requests: Sequence[PrecomputeRequest], dropped: set[str], *, patient: bool
    ) -> list[PrecomputeRequest]:
        """Compute labels; add to the dropped teachers, and return what was left to other runs."""
        left: list[PrecomputeRequest] = []
        running: dict[Future, PrecomputeRequest] = {}
        waiting = {name: self._parts(name, requests) for name in self.teachers}

        def start(teacher: str, count: int = 1) -> None:
            for _, part in zip(range(count), waiting[teacher], strict=False):
                running[self._client.fill(part, patient=patient)] = part

        try:
            for name in waiting:
                start(name, FILL_AHEAD * len(self.address.teachers[name].replicas))
            while running:
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    part = running.pop(done)
                    try:
                        others: np.ndarray = done.result()
                    except TeacherDropped:
                        dropped.add(part.teacher)
                        waiting[part.teacher] = iter(())
                        continue
                    part.on_done(len(part.rows) - len(others))
                    if len(others):
                        left.append(replace(part, rows=others))
                    start(part.teacher)
        finally:
            for future in running:
                future.cancel()
        return left

    def _parts(
        self, teacher: str, requests: Sequence[PrecomputeRequest]
    ) -> Iterator[PrecomputeRequest]:
        for request in requests:
            if request.teacher == teacher:
                lengths = request.view.lengths_of(request.rows)
                # Each is one forward: neighbours by length, as many as the budget holds.
                most = self.address.teachers[teacher].batch_tokens
                for rows in batches_by_length(lengths, max_tokens=most):
                    yield replace(request, rows=request.rows[rows])

    def flush(self) -> None:
        """Have every replica write what it computed."""
        self._client.flush()

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return metrics by teacher; see `PoolRouter.metrics`."""
        return self._client.wait_for(self._router.metrics())

    def take_events(self) -> list[Event]:
        """Return the faults since the last call; see `PoolRouter.take_events`."""
        return self._client.wait_for(self._router.take_events())

    def release(self, teacher: str) -> bool:
        """Let a teacher leave whose labels are all on disk, and give its resources back.

        A client that asks it for a label afterwards gets a `LabelsLost`.

        Returns:
            Whether it left; it stays as long as a client waits for an answer of it.
        """
        if not self._client.wait_for(self._router.release(teacher)):
            return False
        self._end(teacher)
        return True

    def stop(self) -> None:
        """End every replica and give the resources back."""
        self._client.close()
        # The router first: it would take what ends for a failure.
        ray.kill(self.address.router)
        for teacher in list(self._groups):
            self._end(teacher)

    def _end(self, teacher: str) -> None:
        # A thread that releases a teacher may meet the one that stops the pool.
        if (group := self._groups.pop(teacher, None)) is None:
            return
        for handle in self.address.teachers[teacher].replicas:
            ray.kill(handle)
        remove_placement_group(group)


def _reserve(teachers: Sequence[ResolvedTeacher]) -> dict[str, PlacementGroup]:
    bundles = {each.name: [dict(each.resources)] * each.config.replicas for each in teachers}
    groups = {name: placement_group(each, strategy="PACK") for name, each in bundles.items()}
    until = time.monotonic() + PLACEMENT_TIMEOUT_S
    if not all(group.wait(max(until - time.monotonic(), 0.0)) for group in groups.values()):
        for group in groups.values():
            remove_placement_group(group)
        has = {k: v for k, v in ray.cluster_resources().items() if not k.startswith("node:")}
        raise TeacherError(
            f"teachers: the cluster could not reserve {bundles} within "
            f"{PLACEMENT_TIMEOUT_S:.0f} s; it has {has}; something else may be using it"
        )
    return groups


def _start(
    teacher: ResolvedTeacher, store: StoreSpec | str, group: PlacementGroup
) -> HostedTeacher:
    config, resources, placed = teacher.config, teacher.resources, teacher.on(teacher.resources)
    grouped: Any = ray.remote(concurrency_groups={"control": 16})  # pyright: ignore
    actor = grouped(ReplicaHost)
    options = {
        "num_cpus": resources.get("CPU", 0),
        "num_gpus": resources.get("GPU", 0),
        "resources": {k: v for k, v in resources.items() if k not in ("CPU", "GPU")},
        "max_concurrency": MAX_CONCURRENCY,
        # The router, which knows why, decides how often. A lost call comes back to its client,
        # which asks another replica: nothing is replayed.
        "max_restarts": -1,
        "max_task_retries": 0,
    }
    places = [
        PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        for index in range(config.replicas)
    ]
    replicas = [
        actor.options(**options, scheduling_strategy=place).remote(placed, teacher.signals, store)
        for place in places
    ]
    policy = FailurePolicy(config.on_loss, config.deadline_s, config.lost_after_s)
    return HostedTeacher(replicas, policy, placed.forward_tokens)


def _wait_until_loaded(
    name: str, lives: int, handle: ActorHandle, reference: Any, until: float
) -> None:
    """Wait for a replica's model; one that dies over it loads again in its next life."""
    while True:
        try:
            return ray.get(reference, timeout=max(until - time.monotonic(), 0.0))
        except GetTimeoutError as error:
            raise TeacherError(
                f"teacher {name!r}: not loaded after {START_TIMEOUT_S:.0f} s"
            ) from error
        except (RayTaskError, RayActorError, OutOfMemoryError) as error:
            cause = error.cause if isinstance(error, RayTaskError) else None
            # Another process wouldn't have more memory for the same weights.
            is_sick = isinstance(cause, ReplicaFailure) and cause.fault == "device"
            if (isinstance(error, RayTaskError) and not is_sick) or not lives:
                raise as_raised(name, error) from error
            lives -= 1  # an endless number of them is -1
            logger.warning("teacher %r: a replica failed while it was loading: %s", name, error)
            if is_sick:
                ray.kill(handle, no_restart=False)
            reference = handle.load.remote()
