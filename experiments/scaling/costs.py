"""What a call of the pool's router costs, measured: the real one as an actor of a real Ray.

this process ──pipelined calls──► router of so many replicas, whose health it checks
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from raybrew.teachers.failure import FailurePolicy
from raybrew.teachers.monitor import HostedTeacher
from raybrew.teachers.router_actor import PoolRouter

TEACHER, KEYS, TOKENS = "teacher", 256, 32
LANES = (1, 16, 64)
CALLS, ROUNDS = 300, 3


@dataclass(frozen=True)
class CallCosts:
    """Seconds of the router's one thread, and of the way there and back.

    Args:
        question_s: of a question, before its requests.
        request_s: of each request that it becomes.
        finished_s: of noting an answer.
        round_trip_s: of a call when nothing else is to be done.
    """

    question_s: float
    request_s: float
    finished_s: float
    round_trip_s: float


class _Standing:
    """Stands where a replica would."""

    def health(self, batch_tokens: int | None) -> dict[str, Any]:
        metrics = ("batches", "tokens", "compute_s", "examples")
        states = ("forward_s", "lease_wait_s", "queue_age_s", "unwritten_s")
        return {"life": "0", "num_waiting": 1, **dict.fromkeys((*metrics, *states), 0.0)}


def measured_costs() -> CallCosts:
    """Measure on this machine; starts a Ray of its own."""
    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        return _measured()
    finally:
        ray.shutdown()


def _measured() -> CallCosts:
    grouped: Any = ray.remote(concurrency_groups={"control": 4})  # pyright: ignore
    standing = grouped(_Standing)
    replica = standing.options(num_cpus=0).remote()
    by_lanes = {lanes: _of_router(replica, lanes) for lanes in LANES}
    lanes = np.array(LANES, float)
    asked = np.array([by_lanes[each][0] for each in LANES])
    request_s, question_s = np.polyfit(lanes, asked, 1)
    return CallCosts(
        question_s=max(float(question_s), 0.0),
        request_s=float(request_s),
        finished_s=float(np.median([by_lanes[each][1] for each in LANES])),
        round_trip_s=float(np.median([by_lanes[each][2] for each in LANES])),
    )


def _of_router(replica: Any, lanes: int) -> tuple[float, float, float]:
    hosted = HostedTeacher([replica] * lanes, FailurePolicy(), 4096)
    actor: Any = ray.remote(PoolRouter)
    router = actor.options(num_cpus=0, max_concurrency=1000).remote({TEACHER: hosted})
    ray.get(router.begin.remote())
    generator = np.random.default_rng(0)

    def ask() -> Any:
        keys = generator.integers(0, 2**63, (KEYS, 2)).astype(np.uint64)
        tokens = np.full(KEYS, TOKENS, np.int64)
        return router.assign.remote(TEACHER, keys, tokens, most_tokens=4096)

    asked = min(_seconds_each(ask, CALLS // ROUNDS) for _ in range(ROUNDS))
    requests = [each for answer in ray.get([ask() for _ in range(CALLS)]) for each in answer]
    waiting = iter(requests)

    def finish() -> Any:
        request = next(waiting)
        return router.finished.remote(TEACHER, request, len(request.rows))

    noted = min(_seconds_each(finish, CALLS // ROUNDS) for _ in range(ROUNDS))
    alone = []
    for _ in range(50):
        start = time.perf_counter()
        ray.get(router.epochs.remote(TEACHER))
        alone.append(time.perf_counter() - start)
    ray.kill(router)
    return asked, noted, float(np.median(alone))


def _seconds_each(call: Callable[[], Any], count: int) -> float:
    ray.get([call() for _ in range(10)])
    start = time.perf_counter()
    ray.get([call() for _ in range(count)])
    return (time.perf_counter() - start) / count
