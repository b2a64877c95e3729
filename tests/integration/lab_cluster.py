"""The fault lab's Ray cluster of several nodes: who lives on it, and what was left on it."""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import ray
from ray.cluster_utils import Cluster
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.util import placement_group_table

STUDENT_NODES = 3
SEEN_S = 60.0
"""How long Ray may take to see that nodes came or went."""

RAYS_OWN = {"_AutoscalingCoordinatorActor", "PlacementGroupCleaner", "DatasetManager"}
"""Ray's own detached actors: one of the cluster, and what a killed controller leaves."""
RAYS_AGENTS = ("IDLE", "AutoscalingCoordinator", "DashboardAgent", "RuntimeEnvAgent")
GONE_S = 20.0
"""How long a process may take to end after its actor did."""

nodes: list[Any] = []
"""Those with room for a student's worker."""
_cluster: Cluster | None = None


def start() -> str:
    """Start a head without students, and nodes of one student worker each; return the address."""
    global _cluster
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "1"
    os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.3"
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "30"
    # W&B's process of the tests' own process would serve this one too, and no test would find it.
    os.environ.pop("WANDB_SERVICE", None)
    _cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 4,
            "resources": {"teacher": 4},
            "include_dashboard": False,
            "object_store_memory": 80 << 20,
        },
    )
    nodes_join()
    ray.init(
        address=_cluster.address,
        namespace="raybrew",
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    return address()


def address() -> str:
    assert _cluster is not None
    return str(_cluster.address)


def stop() -> None:
    ray.shutdown()
    if _cluster is not None:
        _cluster.shutdown()


def add_node() -> None:
    assert _cluster is not None
    # Faults strike from a thread, where a node can't set the handler of signals that it has.
    with mock.patch("ray._private.utils.set_sigterm_handler"):
        node = _cluster.add_node(num_cpus=1, resources={"student": 1}, object_store_memory=80 << 20)
    nodes.append(node)


def alive(kind: str) -> list[dict[str, Any]]:
    """Return the living actors of a class."""
    table: dict[str, dict[str, Any]] = ray._private.state.actors()  # type: ignore[attr-defined]
    return [a for a in table.values() if a["State"] == "ALIVE" and a["ActorClassName"] == kind]


def leftovers() -> dict[str, list[str]]:
    """Return what runs left on the cluster: actors, their processes, and placement groups."""
    deadline = time.monotonic() + GONE_S
    while (processes := _actor_processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    actors = ray._private.state.actors().values()  # type: ignore[attr-defined]
    groups = placement_group_table().values()
    return {
        "actors": [
            a["ActorClassName"]
            for a in actors
            if a["State"] != "DEAD" and a["ActorClassName"] not in RAYS_OWN
        ],
        "groups": [g["placement_group_id"] for g in groups if g["state"] != "REMOVED"],
        "processes": processes,
    }


def _actor_processes() -> list[str]:
    # Ray names a process by its actor; idle ones wait for the next.
    names = [_command(pid).removeprefix("ray::") for pid in descendants(os.getpid())]
    return [name for name in names if name and not name.startswith((*RAYS_AGENTS, *RAYS_OWN))]


def _command(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has ended
        return ""
    return text.replace("\0", " ").strip() if text.startswith("ray::") else ""


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they started."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
    found, level = [], [pid]
    while level:
        level = [child for child, parent in parents.items() if parent in level]
        found += level
    return found


def remove_node(node: Any, *, in_order: bool = False) -> None:
    """Kill a node, or end it so that the others know at once."""
    assert _cluster is not None
    nodes.remove(node)
    _cluster.remove_node(node, allow_graceful=in_order)


def nodes_join() -> None:
    while len(nodes) < STUDENT_NODES:
        add_node()


def nodes_are_seen() -> None:
    """Have Ray Train see now which nodes there are: it looks three times a minute."""
    students = {node.node_id for node in nodes}
    wait_for(lambda: students == _student_nodes(), SEEN_S)
    coordinator: Any = get_or_create_autoscaling_coordinator()
    ray.get(coordinator._tick.remote())


def _student_nodes() -> set[str]:
    return {n["NodeID"] for n in ray.nodes() if n["Alive"] and "student" in n["Resources"]}


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
