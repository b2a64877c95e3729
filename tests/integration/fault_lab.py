"""A Ray cluster of several nodes in a process of its own, runs on it, and faults that befall them.

pytest ──submit──► lab process: Cluster, driver of the run, a thread that strikes
"""

import contextlib
import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import ray
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.util import placement_group_table

import raybrew as rb
from raybrew.student.checkpoints import Checkpoints

WAIT_S = 300.0
"""A run that takes longer hangs: the watchdog says who waits for what."""

STUDENT_NODES = 3
PREEMPTION_S = 20.0

_cluster: Cluster | None = None
_folder = Path()  # of the run
_kept: list[Any] = []
_nodes: list[Any] = []


def start() -> str:
    """Start a head without students, and nodes of one student worker each; return the address."""
    global _cluster
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "1"
    os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.3"
    # W&B's process of the tests' own process would serve this one too, and nobody here find it.
    os.environ.pop("WANDB_SERVICE", None)
    _cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 4, "include_dashboard": False, "object_store_memory": 80 << 20},
    )
    nodes_join()
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
    # Faults strike from a thread, where a node can't set the handler of signals that it has.
    with mock.patch("ray._private.utils.set_sigterm_handler"):
        node = _cluster.add_node(num_cpus=1, resources={"student": 1}, object_store_memory=80 << 20)
    _nodes.append(node)


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


def kill(kind: str, number: int | None = None) -> None:
    """SIGKILL the processes of a class of actors; one of them, or all."""
    pids = [actor["Pid"] for actor in alive(kind)]
    for pid in pids if number is None else [pids[number]]:
        with contextlib.suppress(ProcessLookupError):
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


def node_is_preempted() -> None:
    """Announce that the node of the last rank will go; take it as soon as the run has saved."""
    assert _cluster is not None
    node_id = alive(RANK)[-1]["Address"]["NodeID"]
    accepted, why = GcsClient(address=_cluster.address).drain_node(
        node_id,
        autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION,  # pyright: ignore[reportAttributeAccessIssue]
        "spot",
        int((time.time() + PREEMPTION_S) * 1000),
    )
    assert accepted, why
    deadline = time.monotonic() + PREEMPTION_S
    events = _folder / "events.jsonl"
    while not (events.exists() and "preemption" in events.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # It is said when it is begun.
    checkpoints = Checkpoints(_folder / "checkpoints")
    before = checkpoints.paths()
    while checkpoints.paths() == before and time.monotonic() < deadline:
        time.sleep(0.05)
    node_dies()


def nodes_leave() -> None:
    """Kill all nodes of students but the one of the first rank; nobody joins."""
    assert _cluster is not None
    stays = alive(RANK)[0]["Address"]["NodeID"]
    for node in [node for node in _nodes if node.node_id != stays]:
        _nodes.remove(node)
        _cluster.remove_node(node, allow_graceful=False)


def nodes_join() -> None:
    while len(_nodes) < STUDENT_NODES:
        add_node()


def object_store_fills() -> None:
    """Keep more in the object store of the head than there is room for."""
    _kept.extend(ray.put(np.zeros(30 << 20, np.uint8)) for _ in range(5))


def wandb_dies() -> None:
    """Kill W&B's own process, through which everything goes."""
    pids = [
        pid
        for pid in descendants(os.getpid())
        if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


FAULTS: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        rank_dies,
        all_ranks_die,
        controller_dies,
        node_dies,
        node_is_preempted,
        nodes_leave,
        nodes_join,
        object_store_fills,
        wandb_dies,
    )
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


@contextlib.contextmanager
def watched(folder: str) -> Iterator[None]:
    """Name who waits for what in a run that seems to hang."""

    def say() -> None:
        at = step_of(Path(folder, "run"))
        print(f"watchdog: {folder} stands after step {at}; {leftovers()}", file=sys.stderr)
        faulthandler.dump_traceback(all_threads=True)

    timer = threading.Timer(WAIT_S * 0.9, say)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _strike(folder: Path, strikes: list[Strike], over: threading.Event) -> None:
    for strike in strikes:
        while step_of(folder) < strike.step:
            if over.wait(0.05):
                return
        FAULTS[strike.fault]()


@contextlib.contextmanager
def striking(folder: Path, strikes: list[Strike]) -> Iterator[None]:
    over = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        struck = thread.submit(_strike, folder, strikes, over)
        try:
            yield
        finally:
            over.set()
        struck.result()


def fill(job: rb.DistillJob, folder: str) -> None:
    """Compute all labels of a job."""
    rb.label(job, run_config=RunConfig(name="fill", storage_path=folder))


def run(
    job: rb.DistillJob,
    folder: str,
    strikes: list[Strike] | None = None,
    workers: int | tuple[int, int] = 2,
    **scaling: Any,
) -> Outcome:
    """Distil, while faults strike."""
    outcome, begin = Outcome(), time.perf_counter()
    global _folder
    _folder = Path(folder, "run")
    _kept.clear()
    nodes_join()  # those that the run before has lost
    with watched(folder), striking(Path(folder, "run"), strikes or []):
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
