"""The teachers of a job as Ray actors.

Placed together, started, asked for labels ahead of their use, stopped.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raybrew.data.encoding import EncodedView
from raybrew.data.payload import Signal
from raybrew.errors import TeacherDropped, TeacherError
from raybrew.labels.remote import StoreSpec
from raybrew.models.devices import DeviceFault, device_for
from raybrew.teachers.client import PoolAddress, PoolClient, raised
from raybrew.teachers.failure import FailurePolicy, ReplicaFailure
from raybrew.teachers.host import ReplicaHost
from raybrew.teachers.router_actor import Member, start_router
from raybrew.teachers.teacher import ResolvedTeacher, batches_by_length

# Labels to compute ahead of their use, as a job of the pool's.


@dataclass(frozen=True)
class PrecomputeRequest:
    """Labels to compute ahead of their use.

    Args:
        teacher: whose labels.
        folder: the encoded split that holds the rows.
        view_name: its view that the teacher reads.
        view: that view.
        rows: rows to label, int64 (n,), of different content.
        on_done: called with the number of rows of each request that is done.
    """

    teacher: str
    folder: str
    view_name: str
    view: EncodedView
    rows: np.ndarray
    on_done: Callable[[int], None]


# The teachers of a job as Ray actors: placed together, started, filled from, stopped.
#
# Each replica is a `ReplicaHost` in an actor of its own, on resources that are reserved in a
# placement group for each teacher before any of them starts: either all of them fit, or none
# starts. A teacher may leave before the others; its resources are free then. A `Desk` on the
# driver's node keeps their books.

logger = logging.getLogger(__name__)

PLACEMENT_TIMEOUT_S = 120.0
START_TIMEOUT_S = 600.0
FILL_AHEAD = 2
"""Requests a replica has when the store is filled: it never stands still."""
MANY = 100_000
"""Calls that wait in an actor at once; who limits them is the askers' credits."""


@dataclass(frozen=True)
class Deployment:
    """A teacher and how it is hosted.

    Args:
        spec: the teacher.
        signals: what it will be asked for.
        replicas: actors.
        resources: Ray resources of each, `CPU` and `GPU` among them.
        policy: what is decided when they fail.
    """

    spec: ResolvedTeacher
    signals: tuple[Signal, ...]
    replicas: int
    resources: dict[str, float]
    policy: FailurePolicy = field(default_factory=FailurePolicy)

    @property
    def placed(self) -> ResolvedTeacher:
        """The teacher on the device, and with the threads, that its resources name."""
        return replace(
            self.spec,
            device=str(device_for(self.resources.get("GPU", 0))),
            num_threads=max(1, int(self.resources.get("CPU", 1))),
        )


_Part = tuple[PrecomputeRequest, np.ndarray]


class TeacherPool:
    """Running teachers; a context manager that stops them."""

    def __init__(self, hostings: Sequence[Deployment], store: StoreSpec | str):
        self._hostings = {hosting.spec.name: hosting for hosting in hostings}
        self._groups = _reserve(hostings)
        replicas = {
            name: [
                _start(hosting, store, self._groups[name], index)
                for index in range(hosting.replicas)
            ]
            for name, hosting in self._hostings.items()
        }
        budgets = {hosting.spec.name: hosting.placed.forward_tokens for hosting in hostings}
        members = {
            name: Member(replicas[name], hosting.policy, budgets[name])
            for name, hosting in self._hostings.items()
        }
        self.address = PoolAddress(start_router(members, MANY), replicas, budgets)
        self._client = PoolClient(self.address)

    def __enter__(self) -> "TeacherPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def teachers(self) -> set[str]:
        """Those that have not left."""
        return set(self._groups)

    def release(self, teacher: str) -> bool:
        """Let a teacher go whose labels are all on disk, and give its resources back.

        Whoever asks it for a label afterwards gets a `LabelsLost`.

        Returns:
            Whether it left; it stays as long as somebody waits for an answer of it.
        """
        if not self._client.of_desk(lambda desk: desk.leave.remote(teacher)):
            return False
        self._end(teacher)
        return True

    def wait(self) -> None:
        """Wait until every teacher is loaded.

        Raises:
            TeacherError: one can't be loaded, or takes longer than `START_TIMEOUT_S`.
        """
        until = time.monotonic() + START_TIMEOUT_S
        loading = [
            (hosting, handle, handle.load.remote())
            for name, hosting in self._hostings.items()
            for handle in self.address.replicas[name]
        ]
        for hosting, handle, reference in loading:
            _loaded(hosting, handle, reference, until)
        ray.get(self.address.desk.begin.remote())

    def fill(self, fillings: Sequence[PrecomputeRequest]) -> set[str]:
        """Compute labels into the store, every replica of every teacher at its full speed.

        What was computed is on disk afterwards, also when this is interrupted or fails.

        Args:
            fillings: what to compute.

        Returns:
            The teachers that were dropped.

        Raises:
            TeacherError: a teacher fails.
        """
        dropped: set[str] = set()
        try:
            # What another run is at is left to it, and waited for when nothing else is to do.
            left = self._work_off(fillings, dropped, patient=False)
            self._work_off(left, dropped, patient=True)
        finally:
            self.flush()
        return dropped

    def _work_off(
        self, fillings: Sequence[PrecomputeRequest], dropped: set[str], *, patient: bool
    ) -> list[PrecomputeRequest]:
        """Compute labels; add to the dropped teachers, and return what was left to other runs."""
        left: list[PrecomputeRequest] = []
        running: dict[Future, _Part] = {}
        waiting = {name: self._requests(name, fillings) for name in self.teachers}
        try:
            for name in waiting:
                for _ in range(FILL_AHEAD * len(self.address.replicas[name])):
                    self._request(waiting, running, name, patient)
            while running:
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    filling, rows = running.pop(done)
                    name = filling.teacher
                    try:
                        others: np.ndarray = done.result()
                    except TeacherDropped:
                        dropped.add(name)
                        waiting[name] = iter(())
                        continue
                    filling.on_done(len(rows) - len(others))
                    if len(others):
                        left.append(replace(filling, rows=others))
                    self._request(waiting, running, name, patient)
        finally:
            for future in running:
                future.cancel()
        return left

    def _requests(self, teacher: str, fillings: Sequence[PrecomputeRequest]) -> Iterator[_Part]:
        for filling in fillings:
            if filling.teacher == teacher:
                lengths = filling.view.lengths_of(filling.rows)
                # Each is one forward: neighbours by length, as many as the budget holds.
                for chunk in batches_by_length(lengths, self.address.batch_tokens[teacher]):
                    yield filling, filling.rows[chunk]

    def _request(
        self,
        waiting: dict[str, Iterator[_Part]],
        running: dict[Future, _Part],
        teacher: str,
        patient: bool,
    ) -> None:
        filling, rows = next(waiting[teacher], (None, None))
        if filling is not None and rows is not None:
            place = (filling.folder, filling.view_name, filling.view)
            future = self._client.fill(teacher, *place, rows, patient=patient)
            running[future] = (filling, rows)

    def flush(self) -> None:
        """Have every replica write what it computed."""
        self._client.flush()

    def figures(self) -> dict[str, dict[str, float]]:
        """Return figures by teacher; see `Desk.figures`."""
        return self._client.of_desk(lambda desk: desk.figures.remote())

    def take_events(self) -> list[dict[str, Any]]:
        """Return what was survived since the last call; see `Desk.take_events`."""
        return self._client.of_desk(lambda desk: desk.take_events.remote())

    def stop(self) -> None:
        """End every replica and give the resources back."""
        self._client.close()
        # The desk first: it would take what ends for a loss.
        ray.kill(self.address.desk)
        for teacher in list(self._groups):
            self._end(teacher)

    def _end(self, teacher: str) -> None:
        # A thread that lets a teacher go may meet the one that stops the pool.
        if (group := self._groups.pop(teacher, None)) is None:
            return
        for handle in self.address.replicas[teacher]:
            ray.kill(handle)
        remove_placement_group(group)


def _reserve(hostings: Sequence[Deployment]) -> dict[str, PlacementGroup]:
    bundles = {h.spec.name: [dict(h.resources)] * h.replicas for h in hostings}
    groups = {name: placement_group(each, strategy="PACK") for name, each in bundles.items()}
    until = time.monotonic() + PLACEMENT_TIMEOUT_S
    if not all(group.wait(max(until - time.monotonic(), 0.0)) for group in groups.values()):
        for group in groups.values():
            remove_placement_group(group)
        raise TeacherError(
            f"teachers: the cluster could not reserve {bundles} within "
            f"{PLACEMENT_TIMEOUT_S:.0f} s; it has {_cluster_resources()}; something else may be "
            "using it"
        )
    return groups


def _start(
    hosting: Deployment, store: StoreSpec | str, group: PlacementGroup, index: int
) -> ActorHandle:
    resources = dict(hosting.resources)
    grouped: Any = ray.remote(concurrency_groups={"control": 16})  # pyright: ignore
    return (
        grouped(ReplicaHost)
        .options(
            num_cpus=resources.pop("CPU", 0),
            num_gpus=resources.pop("GPU", 0),
            resources=resources,
            max_concurrency=MANY,
            # How often is the desk's to say, which knows why. A lost call comes back to its asker,
            # who goes elsewhere: nothing is replayed.
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=index
            ),
        )
        .remote(hosting.placed, hosting.signals, store)
    )


def _loaded(hosting: Deployment, handle: ActorHandle, reference: Any, until: float) -> None:
    """Wait for a replica's model; one that dies over it loads again in its next life."""
    name, lives = hosting.spec.name, hosting.policy.max_restarts
    while True:
        try:
            return ray.get(reference, timeout=max(until - time.monotonic(), 0.0))
        except GetTimeoutError as error:
            raise TeacherError(
                f"teacher {name!r}: not loaded after {START_TIMEOUT_S:.0f} s"
            ) from error
        except (RayTaskError, RayActorError, OutOfMemoryError) as error:
            failed = isinstance(error, RayTaskError)
            # Another process wouldn't have more memory for the same weights.
            again = not failed or _fault(error) == "device"
            if not again or not lives:
                raise raised(name, error) from error
            lives -= 1  # an endless number of them is -1
            logger.warning("teacher %r: lost a replica that was loading: %s", name, error)
            if failed:
                ray.kill(handle, no_restart=False)
            reference = handle.load.remote()


def _fault(error: RayTaskError) -> DeviceFault | None:
    return error.cause.fault if isinstance(error.cause, ReplicaFailure) else None


def _cluster_resources() -> dict[str, float]:
    return {k: v for k, v in ray.cluster_resources().items() if not k.startswith("node:")}
