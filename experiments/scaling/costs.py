"""What a call of the pool's desk costs, measured: the real `Desk` as an actor of a real Ray.

this process ──pipelined calls──► Desk with so many replicas, whose health it asks after
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from raybrew.teachers.failure import FailurePolicy
from raybrew.teachers.router_actor import Member, PoolRouter

TEACHER, KEYS, TOKENS = "teacher", 256, 32
LANES = (1, 16, 64)
CALLS, ROUNDS = 300, 3


@dataclass(frozen=True)
class CallCosts:
    """Seconds of the desk's one thread, and of the way there and back.

    Args:
        question_s: of a question, before its tickets.
        ticket_s: of each ticket that it becomes.
        finished_s: of noting an answer.
        round_trip_s: of a call when nothing else is to be done.
    """

    question_s: float
    ticket_s: float
    finished_s: float
    round_trip_s: float


class _Standing:
    """Stands where a replica would."""

    def health(self, life: str, heard: int) -> dict[str, Any]:
        figures = ("batches", "tokens", "compute_s", "examples")
        ages = ("forward_s", "others_s", "queue_age_s")
        told = {"life": life or "0", "waiting": 1, "answers": [], "heard": heard, "on_disk": 0}
        return {**told, **dict.fromkeys((*figures, *ages), 0.0)}


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
    by_lanes = {lanes: _of_desk(replica, lanes) for lanes in LANES}
    lanes = np.array(LANES, float)
    asked = np.array([by_lanes[each][0] for each in LANES])
    ticket_s, question_s = np.polyfit(lanes, asked, 1)
    return CallCosts(
        question_s=max(float(question_s), 0.0),
        ticket_s=float(ticket_s),
        finished_s=float(np.median([by_lanes[each][1] for each in LANES])),
        round_trip_s=float(np.median([by_lanes[each][2] for each in LANES])),
    )


def _of_desk(replica: Any, lanes: int) -> tuple[float, float, float]:
    member = Member([replica] * lanes, FailurePolicy(), 4096)
    actor: Any = ray.remote(PoolRouter)
    desk = actor.options(num_cpus=0, max_concurrency=1000).remote({TEACHER: member})
    ray.get(desk.begin.remote())
    generator = np.random.default_rng(0)

    def ask() -> Any:
        keys = generator.integers(0, 2**63, (KEYS, 2)).astype(np.uint64)
        tokens = np.full(KEYS, TOKENS, np.int64)
        return desk.assign.remote(TEACHER, keys, tokens, 4096, False, False)

    asked = min(_seconds_each(ask, CALLS // ROUNDS) for _ in range(ROUNDS))
    tickets = [each for answer in ray.get([ask() for _ in range(CALLS)]) for each in answer]
    computed = np.ones(KEYS // lanes, bool)
    waiting = iter(tickets)

    def finish() -> Any:
        ticket = next(waiting)
        told = np.resize(computed, len(ticket.rows)), np.empty(0, np.int64)
        return desk.finished.remote(TEACHER, ticket, *told)

    noted = min(_seconds_each(finish, CALLS // ROUNDS) for _ in range(ROUNDS))
    alone = []
    for _ in range(50):
        start = time.perf_counter()
        ray.get(desk.lives.remote(TEACHER))
        alone.append(time.perf_counter() - start)
    ray.kill(desk)
    return asked, noted, float(np.median(alone))


def _seconds_each(call: Callable[[], Any], count: int) -> float:
    ray.get([call() for _ in range(10)])
    start = time.perf_counter()
    ray.get([call() for _ in range(count)])
    return (time.perf_counter() - start) / count
