"""A run on a cluster of its own, in which the node that hosts the teacher is killed.

    python -m tests.integration.node_of_teachers FOLDER MODEL

The head has room for the student only; two further nodes have room for both replicas each. The one
that is at work is killed in the middle of a forward. Prints what came of it as JSON.
"""

import json
import logging
import os
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.train import RunConfig, ScalingConfig

import raybrew as rb
from tests.made import make_job
from tests.teachers import faulty


def kill_node(cluster: Cluster, nodes: list[Any]) -> None:
    while len(faulty.forwards()) < 2:
        time.sleep(0.05)
    (at_work,) = set(faulty.nodes().values())
    (node,) = [node for node in nodes if node.node_id == at_work]
    (faulty.folder() / "sleep").unlink()
    cluster.remove_node(node, allow_graceful=False)


def main() -> None:
    folder, model = Path(sys.argv[1]), sys.argv[2]
    os.environ[faulty.ENVIRONMENT] = str(folder / "faults")
    faulty.folder().mkdir()
    faulty.plan("sleep", "0.4")
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    nodes = [cluster.add_node(num_cpus=1, resources={"teachers": 2}) for _ in range(2)]
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    killer = threading.Thread(target=kill_node, args=(cluster, nodes))
    killer.start()
    teacher = rb.Teacher(
        name="a",
        task="sum",
        model=model,
        replicas=2,
        resources={"CPU": 0.5, "teachers": 1},
        batch_tokens=64,
        adaptor="tests.teachers.faulty:faulty",
        on_loss="wait",
    )
    result = rb.distill(
        make_job({"a": model}, folder / "store", teachers=[teacher]),
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="run", storage_path=str(folder)),
    )
    killer.join()
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
