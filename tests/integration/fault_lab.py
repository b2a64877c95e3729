"""A Ray cluster of several nodes in a process of its own, runs on it, and faults that befall them.

pytest ──submit──► lab process: Cluster, driver of the run, a thread that strikes
"""

import contextlib
import json
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.util import placement_group_table

import raybrew as rb

WAIT_S = 300.0
"""A run that takes longer hangs: the watchdog says who waits for what."""

_cluster: Cluster | None = None
_nodes: list[Any] = []


def start(student_nodes: int) -> str:
    """Start a head without students, and nodes of one student worker each; return the address."""
    global _cluster
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    _cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 4, "include_dashboard": False, "object_store_memory": 80 << 20},
    )
    for _ in range(student_nodes):
        add_node()
    ray.init(
        address=_cluster.address,
        namespace="raybrew",
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    return str(_cluster.address)


def stop() -> None:
    ray.shutdown()
    if _cluster is not None:
        _cluster.shutdown()


def add_node() -> None:
    assert _cluster is not None
    _nodes.append(
        _cluster.add_node(num_cpus=1, resources={"student": 1}, object_store_memory=80 << 20)
    )


def alive(kind: str) -> list[dict[str, Any]]:
    """Return the living actors of a class."""
    table: dict[str, dict[str, Any]] = ray._private.state.actors()  # type: ignore[attr-defined]
    return [a for a in table.values() if a["State"] == "ALIVE" and a["ActorClassName"] == kind]


RAYS_OWN = {"_AutoscalingCoordinatorActor", "PlacementGroupCleaner", "DatasetManager"}
"""Ray's own detached actors: one of the cluster, and what a killed controller leaves."""


def leftovers() -> dict[str, list[str]]:
    """Return what runs left on the cluster: actors and placement groups that live."""
    actors = ray._private.state.actors().values()  # type: ignore[attr-defined]
    groups = placement_group_table().values()
    return {
        "actors": [
            a["ActorClassName"]
            for a in actors
            if a["State"] != "DEAD" and a["ActorClassName"] not in RAYS_OWN
        ],
        "groups": [g["placement_group_id"] for g in groups if g["state"] != "REMOVED"],
    }


def kill(kind: str, number: int | None = None) -> None:
    """SIGKILL the processes of a class of actors; one of them, or all."""
    pids = [actor["Pid"] for actor in alive(kind)]
    for pid in pids if number is None else [pids[number]]:
        os.kill(pid, signal.SIGKILL)


# What can strike. Each is a function of nothing; its name is what a test asks for.
RANK = "RayTrainWorker"


def rank_dies() -> None:
    kill(RANK, 1)


def all_ranks_die() -> None:
    kill(RANK)


def controller_dies() -> None:
    kill("TrainController")


def node_dies() -> None:
    """Kill the node of the last rank, and let another one join."""
    assert _cluster is not None
    node_id = alive(RANK)[-1]["Address"]["NodeID"]
    node = next(node for node in _nodes if node.node_id == node_id)
    _nodes.remove(node)
    _cluster.remove_node(node, allow_graceful=False)
    add_node()


FAULTS: dict[str, Callable[[], None]] = {
    each.__name__: each for each in (rank_dies, all_ranks_die, controller_dies, node_dies)
}


@dataclass
class Strike:
    """A fault, and after which step it strikes."""

    fault: str
    step: int


@dataclass
class Outcome:
    """What became of a run."""

    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    wall_s: float = 0.0


def step_of(folder: Path) -> int:
    """Return the last step that a run has recorded."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return 0
    steps = [json.loads(line).get("step", 0) for line in file.read_text().splitlines()[-3:]]
    return max(steps, default=0)


def _strike(folder: Path, strikes: list[Strike], over: threading.Event) -> None:
    for strike in strikes:
        while step_of(folder) < strike.step:
            if over.wait(0.05):
                return
        FAULTS[strike.fault]()


@contextlib.contextmanager
def striking(folder: Path, strikes: list[Strike]) -> Iterator[None]:
    over = threading.Event()
    thread = threading.Thread(target=_strike, args=(folder, strikes, over))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def run(
    job: rb.DistillJob,
    folder: str,
    strikes: list[Strike] | None = None,
    workers: int | tuple[int, int] = 2,
    **scaling: Any,
) -> Outcome:
    """Distil, while faults strike."""
    outcome, begin = Outcome(), time.perf_counter()
    with striking(Path(folder, "run"), strikes or []):
        try:
            result = rb.distill(
                job,
                scaling_config=ScalingConfig(
                    num_workers=workers,
                    resources_per_worker={"CPU": 1, "student": 1},
                    **scaling,
                ),
                run_config=RunConfig(
                    name="run",
                    storage_path=folder,
                    failure_config=FailureConfig(max_failures=3),
                ),
            )
            outcome.result = asdict(result)
        except Exception as error:
            # As text: not every error of Ray's can be sent to the test's process.
            outcome.error = "".join(traceback.format_exception(error))
    outcome.wall_s = time.perf_counter() - begin
    return outcome
