"""A Ray cluster of several nodes in a process of its own, runs on it, and faults that hit them.

pytest ──submit──► lab process: cluster (`lab_cluster`), driver of the run, a thread that `strikes`
"""

import contextlib
import faulthandler
import json
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig

import raybrew as rb
from tests.integration import lab_cluster
from tests.integration.strikes import FAULTS, aim

WAIT_S = 300.0
"""A run that takes longer hangs: the watchdog says who waits for what."""

_striker = ThreadPoolExecutor(1)
"""Strikes from one thread for all runs: the nodes that a thread starts die with it."""


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
        print(
            f"watchdog: {folder} stands after step {at}; {lab_cluster.leftovers()}", file=sys.stderr
        )
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
    struck = _striker.submit(_strike, folder, strikes, over)
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
    aim(Path(folder, "run"), Path(job.labels.store))
    lab_cluster.nodes_join()  # those that the run before has lost
    lab_cluster.nodes_are_seen()
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
