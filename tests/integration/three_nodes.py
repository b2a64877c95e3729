"""A Ray cluster of three nodes that takes jobs, in a process of its own, and what is left of it.

pytest ◄──one line of JSON── this process: Cluster ──► head: takes jobs, on loopback; can't work
   └──closes stdin: it ends──►                     ├─► a node of teachers
                                                   └─► a node of students
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster
from ray.job_submission import JobDetails, JobSubmissionClient
from ray.util.state import list_actors, list_placement_groups

WITNESSES = "RAYBREW_TEST_WITNESSES"
"""Every process of the cluster has it in its environment: a folder, see `submitted/witness.py`."""
JOB_S = 600.0
STOP_S = 60.0
STORE_BYTES = 80 << 20


@dataclass(frozen=True)
class ThreeNodes:
    """Where jobs are submitted to, and Ray's names of the nodes."""

    address: str
    head: str
    teachers: str
    students: str

    def submit(self, working_dir: Path, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the job `submitted`, and wait for its end."""
        ray = str(Path(sys.executable).with_name("ray"))
        options = ["--submission-id", "submitted", "--working-dir", str(working_dir)]
        return subprocess.run(
            [ray, "job", "submit", "--address", self.address, *options, "--", *command],
            capture_output=True,
            text=True,
            timeout=JOB_S,
        )

    # By Ray's own clients: a Ray that this process has may have set it to ask for tokens.
    def job(self) -> JobDetails:
        """Return what the job server says of the job."""
        return JobSubmissionClient(self.address).get_job_info("submitted")

    def actors(self) -> list[str]:
        """Return the classes of the actors that live."""
        listed: list[Any] = list_actors(self.address, limit=1000)
        assert listed, "not one was ever there"
        return [str(actor.class_name) for actor in listed if actor.state != "DEAD"]

    def groups(self) -> list[str]:
        """Return the placement groups that hold resources."""
        listed: list[Any] = list_placement_groups(self.address, limit=1000)
        assert listed, "not one was ever there"
        return [group.placement_group_id for group in listed if group.state != "REMOVED"]


@contextlib.contextmanager
def three_nodes(witnesses: Path) -> Iterator[ThreeNodes]:
    """Start the cluster; stop it and all of its processes."""
    witnesses.mkdir()
    # Short, for the names of its sockets; its own, so that no other cluster is taken for it.
    temporary = tempfile.mkdtemp(prefix="rb-", dir=os.environ.get("RAY_TMPDIR"))
    lab = subprocess.Popen(
        [sys.executable, "-m", __name__],
        env={
            **os.environ,
            WITNESSES: str(witnesses),
            "RAY_TMPDIR": temporary,
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert lab.stdin is not None
    assert lab.stdout is not None
    try:
        yield ThreeNodes(**json.loads(lab.stdout.readline()))
    finally:
        lab.stdin.close()
        try:
            lab.wait(STOP_S)
        finally:
            lab.stdout.close()
            for pid in processes(witnesses) if lab.poll() is None else ():
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(temporary)


def processes(witnesses: Path) -> dict[int, str]:
    """Return the commands of the processes that the cluster started and that live."""
    mark = f"{WITNESSES}={witnesses}\0".encode()
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes():
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
    return found


def until_none(look: Callable[[], Any]) -> Any:
    """Return what is there, or nothing as soon as nothing is."""
    until = time.monotonic() + STOP_S
    while (found := look()) and time.monotonic() < until:
        time.sleep(0.2)
    return found


def main() -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            # Any that is free: other clusters may be here.
            "dashboard_agent_listen_port": 0,
            "object_store_memory": STORE_BYTES,
        },
    )
    nodes = [
        cluster.add_node(num_cpus=1, resources={kind: 1000}, object_store_memory=STORE_BYTES)
        for kind in ("teacher_node", "student_node")
    ]
    head: Any = cluster.head_node
    address = f"http://{cluster.webui_url}"
    started = ThreeNodes(address, head.node_id, nodes[0].node_id, nodes[1].node_id)
    print(json.dumps(asdict(started)), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
