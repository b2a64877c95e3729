"""What can hit a run in the fault lab. Each is a function of nothing; its name is its fault."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.core.generated import autoscaler_pb2

from raybrew.labels.shards import Shard
from raybrew.training.checkpoints import Checkpoints
from tests.integration import lab_cluster
from tests.integration.lab_cluster import alive, descendants, wait_for

PREEMPTION_S = 20.0
ALONE_S = 120.0
RANK = "RayTrainWorker"

_folder = Path()  # of the run
_shards: list[Path] = []  # that its store had before, and no fault has met
_kept: list[Any] = []


def aim(folder: Path, store: Path) -> None:
    """Say which run is to be struck: its folder, and its store."""
    global _folder, _shards
    _folder, _shards = folder, sorted(store.rglob("shard-*.arrow"))
    _kept.clear()


def kill(kind: str, number: int | None = None) -> None:
    """SIGKILL the processes of a class of actors; one of them, or all."""
    pids = [actor["Pid"] for actor in alive(kind)]
    for pid in pids if number is None else [pids[number]]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def rank_dies() -> None:
    kill(RANK, 1)


def all_ranks_die() -> None:
    kill(RANK)


def controller_dies() -> None:
    kill("TrainController")


def node_dies() -> None:
    """Kill the node of the last rank, and let another one join."""
    _replace_node(alive(RANK)[-1]["Address"]["NodeID"])


def _replace_node(node_id: str) -> None:
    lab_cluster.remove_node(next(n for n in lab_cluster.nodes if n.node_id == node_id))
    lab_cluster.add_node()


def node_is_preempted() -> None:
    """Announce that the node of the last rank will go; take it as soon as the run has saved."""
    node_id = alive(RANK)[-1]["Address"]["NodeID"]
    accepted, why = GcsClient(address=lab_cluster.address()).drain_node(
        node_id,
        autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION,  # pyright: ignore[reportAttributeAccessIssue]
        "spot",
        int((time.time() + PREEMPTION_S) * 1000),
    )
    assert accepted, why
    events = _folder / "events.jsonl"
    wait_for(lambda: events.exists() and "preemption" in events.read_text(), PREEMPTION_S)
    # It is announced when it begins.
    checkpoints = Checkpoints(_folder / "checkpoints")
    before, deadline = checkpoints.paths(), time.monotonic() + PREEMPTION_S
    while checkpoints.paths() == before and time.monotonic() < deadline:
        time.sleep(0.05)
    # That one: Ray ends a node that it has drained, and no rank need be on it any more.
    _replace_node(node_id)


def nodes_leave() -> None:
    """End all nodes of students but the one of the first of two ranks; no node joins.

    In order, so that Ray knows at once that they have ended and Train asks for no worker on them.
    """
    first, _ = alive(RANK)
    stays = first["Address"]["NodeID"]
    for node in [node for node in lab_cluster.nodes if node.node_id != stays]:
        lab_cluster.remove_node(node, in_order=True)
    lab_cluster.nodes_are_seen()


def nodes_come_back() -> None:
    """Let nodes join once the student goes on with a single worker."""
    events = _folder / "events.jsonl"
    wait_for(lambda: events.exists() and "with 1 worker" in events.read_text(), ALONE_S)
    lab_cluster.nodes_join()
    lab_cluster.nodes_are_seen()


def shard_is_deleted() -> None:
    _shards.pop().unlink()


def shard_is_cut_short() -> None:
    """Take the last value off a shard; what has it mapped reads zeros there."""
    path, place = _last_value()
    os.truncate(path, place)


def shard_is_flipped() -> None:
    """Flip a bit of a value of a shard, in place."""
    path, place = _last_value()
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))


def _last_value() -> tuple[Path, int]:
    path = _shards.pop()
    shard = Shard(path, "/".join(path.parts[-3:-1]))
    return path, path.read_bytes().rindex(shard.payload.values[-1].tobytes())


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
        nodes_come_back,
        shard_is_deleted,
        shard_is_cut_short,
        shard_is_flipped,
        object_store_fills,
        wandb_dies,
    )
}
