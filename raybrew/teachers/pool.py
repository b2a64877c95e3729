"""The teachers of a job as Ray actors: placed together, started, filled from, stopped.

Each replica is a `Replica` in an actor of its own, on resources that are reserved in one
placement group before any of them starts: either all of them fit, or none waits for the others.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raybrew.errors import TeacherError
from raybrew.labels.payload import Signal
from raybrew.labels.spec import StoreSpec
from raybrew.teachers.client import PoolClient, home_of, outcome
from raybrew.teachers.replica import Replica
from raybrew.teachers.teacher import TeacherSpec

__all__ = ["Filling", "Hosting", "TeacherPool"]

logger = logging.getLogger(__name__)

PLACEMENT_TIMEOUT_S = 120.0
START_TIMEOUT_S = 600.0
FILL_ROWS = 256
"""Examples of one request when the store is filled; small enough for a lively progress bar."""


@dataclass(frozen=True)
class Hosting:
    """A teacher and how it is hosted.

    Args:
        spec: the teacher.
        signals: what it will be asked for.
        replicas: actors.
        resources: Ray resources of each, `CPU` and `GPU` among them.
    """

    spec: TeacherSpec
    signals: tuple[Signal, ...]
    replicas: int
    resources: dict[str, float]


@dataclass(frozen=True)
class Filling:
    """Labels to compute ahead of their use.

    Args:
        teacher: whose labels.
        folder: the encoded split that holds the rows.
        view_name: its view that the teacher reads.
        keys: keys of the whole split, uint64 (N, 2).
        rows: rows to label, int64 (n,); neighbours are computed together, so best by length.
        on_done: called with the number of rows of each request that is done.
    """

    teacher: str
    folder: str
    view_name: str
    keys: np.ndarray
    rows: np.ndarray
    on_done: Callable[[int], None]


class TeacherPool:
    """Running teachers; a context manager that stops them."""

    def __init__(self, hostings: Sequence[Hosting], store: StoreSpec | str):
        self._hostings = {hosting.spec.name: hosting for hosting in hostings}
        bundles = [dict(h.resources) for h in hostings for _ in range(h.replicas)]
        self._group = _reserve(bundles)
        self.replicas: dict[str, list[ActorHandle]] = {}
        index = 0
        for hosting in hostings:
            handles = []
            for _ in range(hosting.replicas):
                handles.append(_start(hosting, store, self._group, index))
                index += 1
            self.replicas[hosting.spec.name] = handles

    def __enter__(self) -> "TeacherPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self) -> None:
        """Wait until every teacher is loaded.

        Raises:
            TeacherError: one can't be loaded, or takes longer than `START_TIMEOUT_S`.
        """
        for name, handles in self.replicas.items():
            references: list[Any] = [handle.load.remote() for handle in handles]
            _, late = ray.wait(references, num_returns=len(references), timeout=START_TIMEOUT_S)
            if late:
                raise TeacherError(f"teacher {name!r}: not loaded after {START_TIMEOUT_S:.0f} s")
            for reference in references:
                outcome(name, reference)

    def client(self) -> PoolClient:
        """Return what ranks ask through."""
        return PoolClient(self.replicas)

    def fill(self, fillings: Sequence[Filling]) -> None:
        """Compute labels into the store, every replica of every teacher at its full speed.

        Args:
            fillings: what to compute; those of one teacher in this order.

        Raises:
            TeacherError: a teacher fails.
        """
        waiting = self._requests(fillings)
        running: dict[ray.ObjectRef, tuple[ActorHandle, Filling, int]] = {}

        def submit(handle: ActorHandle) -> None:
            if waiting[handle]:
                filling, part = waiting[handle].popleft()
                reference = handle.fill.remote(filling.folder, filling.view_name, part)
                running[reference] = (handle, filling, len(part))

        for handle in list(waiting) * 2:  # two requests a replica: it never stands still
            submit(handle)
        while running:
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            handle, filling, count = running.pop(done)
            outcome(filling.teacher, done)
            filling.on_done(count)
            submit(handle)
        self.flush()

    def _requests(
        self, fillings: Sequence[Filling]
    ) -> dict[ActorHandle, deque[tuple[Filling, np.ndarray]]]:
        waiting: dict[ActorHandle, deque[tuple[Filling, np.ndarray]]] = {}
        for filling in fillings:
            handles = self.replicas[filling.teacher]
            home = home_of(filling.keys[filling.rows], len(handles))
            for number, handle in enumerate(handles):
                mine = filling.rows[home == number]
                parts = [mine[i : i + FILL_ROWS] for i in range(0, len(mine), FILL_ROWS)]
                waiting.setdefault(handle, deque()).extend((filling, part) for part in parts)
        return waiting

    def flush(self) -> None:
        """Have every replica write what it computed."""
        self.client().flush()

    def figures(self) -> dict[str, dict[str, float]]:
        """Return, by teacher, the sums of its replicas' `ReplicaFigures`."""
        sums: dict[str, dict[str, float]] = {}
        for name, handles in self.replicas.items():
            each: list[Any] = [
                outcome(name, h.figures.options(concurrency_group="control").remote())
                for h in handles
            ]
            sums[name] = {key: sum(one[key] for one in each) for key in each[0]}
        return sums

    def stop(self) -> None:
        """End every replica and give the resources back."""
        for handles in self.replicas.values():
            for handle in handles:
                ray.kill(handle)
        remove_placement_group(self._group)


def _reserve(bundles: list[dict[str, float]]) -> PlacementGroup:
    group = placement_group(bundles, strategy="PACK")
    if not group.wait(PLACEMENT_TIMEOUT_S):
        remove_placement_group(group)
        raise TeacherError(
            f"teachers: the cluster could not reserve {bundles} within "
            f"{PLACEMENT_TIMEOUT_S:.0f} s; it has {_cluster_resources()}; something else may be "
            "using it"
        )
    return group


def _start(
    hosting: Hosting, store: StoreSpec | str, group: PlacementGroup, index: int
) -> ActorHandle:
    resources = dict(hosting.resources)
    grouped: Any = ray.remote(concurrency_groups={"control": 1})  # pyright: ignore
    actor = grouped(Replica)
    return actor.options(
        num_cpus=resources.pop("CPU", 0),
        num_gpus=resources.pop("GPU", 0),
        resources=resources,
        max_restarts=3,
        max_task_retries=3,
        scheduling_strategy=PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=index
        ),
    ).remote(hosting.spec, hosting.signals, store)


def _cluster_resources() -> dict[str, float]:
    return {k: v for k, v in ray.cluster_resources().items() if not k.startswith("node:")}
