"""One Ray for all integration tests, tiny teachers, and a place for runs."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.train import RunConfig

from tests.made import make_model
from tests.teachers import faulty


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # What Ray's processes inherit: where faults of tests are planned (see tests.teachers.faulty).
    os.environ[faulty.ENVIRONMENT] = str(tmp_path_factory.mktemp("faults"))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    # A process a run less; the lab of faults has it on.
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    # More CPUs than the machine has: placement is what is tested, not speed.
    # Never another one that runs on this machine, as those of tests with several nodes do.
    ray.init(
        "local",
        num_cpus=6,
        logging_level=logging.ERROR,
        log_to_driver=False,
        include_dashboard=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    return {name: make_model(folder / name, seed) for seed, name in enumerate("ab")}


@pytest.fixture
def run_config(tmp_path: Path) -> RunConfig:
    # Relative and with a space: Ray itself takes neither.
    return RunConfig(name="run", storage_path=os.path.relpath(tmp_path / "my runs"))
