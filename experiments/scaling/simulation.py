"""A pool of many replicas and ranks, simulated with the costs of calls measured here."""

import heapq
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from raybrew.teachers.failure import FailurePolicy
from raybrew.teachers.router import Router, Ticket
from raybrew.teachers.router_actor import TICKETS_OF_A_FORWARD, Member, PoolRouter

# What a call of the pool's desk costs, measured: the real `Desk` as an actor of a real Ray.
#
# this process ──pipelined calls──► Desk with so many replicas, whose health it asks after

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


# A run of many ranks and replicas as a sequence of events: artificial step times, real decisions.
#
#     rank: question of a window ─► desk (one thread) ─► tickets ─► replicas (gathered, one forward
#           after another) ─► answers noted at the desk ─► the window's steps, all ranks in lockstep
#
# Who answers what is decided by the package's own `Router`. What a call costs was measured; what
# a step and a forward take is made up. Labels are all missing, as in the first epoch of a new
# teacher.

NONE_LEFT = np.empty(0, np.int64)


@dataclass(frozen=True)
class Setting:
    """What is simulated.

    Args:
        ranks: of the student.
        replicas: of the teacher.
        costs: of calls.
        step_s: of the student, without waiting.
        rows: of a step of a rank.
        tokens: of a row.
        tokens_per_s: of a replica.
        forward_s: of a forward, besides its tokens.
        batch_tokens: of a forward, at most.
        window: steps of a question.
        max_windows: questions under way.
        num_windows: length of the run.
    """

    ranks: int
    replicas: int
    costs: CallCosts
    step_s: float = 0.1
    rows: int = 32
    tokens: int = 32
    tokens_per_s: float = 12_800.0
    forward_s: float = 0.002
    batch_tokens: int = 4096
    window: int = 8
    max_windows: int = 2
    num_windows: int = 12


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Args:
        examples_per_s: of the whole student.
        ideal_per_s: of ranks that never wait.
        desk_busy: share of the time that the desk's thread works.
        replicas_busy: the same of the replicas, on average.
        calls_per_s: that the desk answers.
        rows_per_ticket: examples of a request.
    """

    examples_per_s: float
    ideal_per_s: float
    desk_busy: float
    replicas_busy: float
    calls_per_s: float
    rows_per_ticket: float

    @property
    def share(self) -> float:
        """Of the ideal throughput."""
        return self.examples_per_s / self.ideal_per_s


class _Server:
    """One thread that does one thing after another."""

    def __init__(self) -> None:
        self.free_s, self.busy_s, self.calls = 0.0, 0.0, 0

    def done_at(self, now: float, cost: float) -> float:
        """Return when work that comes now is done."""
        self.free_s = max(self.free_s, now) + cost
        self.busy_s += cost
        self.calls += 1
        return self.free_s


@dataclass
class _Replica:
    waiting: deque[tuple[int, Callable[[], None]]] = field(default_factory=deque)
    at_work: bool = False
    busy_s: float = 0.0


class _Run:
    def __init__(self, setting: Setting):
        self._s = setting
        self._router = Router(
            setting.replicas,
            slack_tokens=2 * setting.batch_tokens,
            least_tokens=setting.batch_tokens // TICKETS_OF_A_FORWARD,
        )
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._now = 0.0
        self._desk = _Server()
        self._replicas = [_Replica() for _ in range(setting.replicas)]
        self._keys = np.random.default_rng(0)
        self._open: dict[tuple[int, int], int] = {}
        self._asked = [0] * setting.ranks
        self._ready = [0] * setting.ranks
        self._window = 0
        self._tickets = self._rows = 0
        self._begun_s: list[float] = []

    def run(self) -> Outcome:
        s = self._s
        for rank in range(s.ranks):
            for _ in range(s.max_windows):
                self._ask(rank)
        while self._events and self._window < s.num_windows:
            self._now, _, act = heapq.heappop(self._events)
            act()
        # The first windows fill the pipeline; what comes after is the steady state.
        first = s.max_windows
        seconds = self._begun_s[-1] + s.window * s.step_s - self._begun_s[first]
        windows = s.num_windows - first
        return Outcome(
            examples_per_s=windows * s.window * s.rows * s.ranks / seconds,
            ideal_per_s=s.rows * s.ranks / s.step_s,
            desk_busy=self._desk.busy_s / self._now,
            replicas_busy=sum(each.busy_s for each in self._replicas) / s.replicas / self._now,
            calls_per_s=self._desk.calls / self._now,
            rows_per_ticket=self._rows / self._tickets,
        )

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._numbers), act))

    def _at_desk(self, cost: float, act: Callable[[], None]) -> None:
        """Call the desk: half the way, its queue, its work, the other half."""
        half = self._s.costs.round_trip_s / 2

        def arrived() -> None:
            done = self._desk.done_at(self._now, cost)
            self._after(done - self._now + half, act)

        self._after(half, arrived)

    def _ask(self, rank: int) -> None:
        s = self._s
        number = self._asked[rank]
        if number >= s.num_windows:
            return
        self._asked[rank] += 1
        count = s.window * s.rows
        keys = self._keys.integers(0, 2**63, (count, 2)).astype(np.uint64)
        tokens = np.full(count, s.tokens, np.int64)
        tickets = self._router.assign(keys, tokens, most_tokens=s.batch_tokens)
        assert tickets is not None
        self._tickets += len(tickets)
        self._rows += count
        self._open[rank, number] = len(tickets)
        cost = s.costs.question_s + s.costs.ticket_s * len(tickets)

        def handed_out() -> None:
            for ticket in tickets:
                self._request(rank, number, ticket)

        self._at_desk(cost, handed_out)

    def _request(self, rank: int, number: int, ticket: Ticket) -> None:
        s = self._s
        replica = self._replicas[ticket.replica]

        def noted() -> None:
            self._open[rank, number] -= 1
            if not self._open[rank, number]:
                self._ready[rank] += 1
                self._step_if_ready()

        def answered() -> None:
            computed = np.ones(len(ticket.rows), bool)
            self._router.answered(ticket.replica, ticket.number, computed, NONE_LEFT)
            self._at_desk(s.costs.finished_s, noted)

        def arrived() -> None:
            replica.waiting.append((len(ticket.rows) * s.tokens, answered))
            self._forward(replica)

        self._after(s.costs.round_trip_s / 2, arrived)

    def _forward(self, replica: _Replica) -> None:
        s = self._s
        if replica.at_work or not replica.waiting:
            return
        batch: list[Callable[[], None]] = []
        tokens = 0
        while replica.waiting and (not batch or tokens + replica.waiting[0][0] <= s.batch_tokens):
            size, act = replica.waiting.popleft()
            tokens += size
            batch.append(act)
        seconds = s.forward_s + tokens / s.tokens_per_s
        replica.busy_s += seconds
        replica.at_work = True

        def done() -> None:
            replica.at_work = False
            for act in batch:
                self._after(s.costs.round_trip_s / 2, act)
            self._forward(replica)

        self._after(seconds, done)

    def _step_if_ready(self) -> None:
        """Begin a window's steps once every rank has its labels: gradients are shared."""
        if len(self._begun_s) > self._window or min(self._ready) <= self._window:
            return
        self._begun_s.append(self._now)
        for rank in range(self._s.ranks):
            self._ask(rank)

        def done() -> None:
            self._window += 1
            if self._window < self._s.num_windows:
                self._step_if_ready()

        self._after(self._s.window * self._s.step_s, done)


def simulated(setting: Setting) -> Outcome:
    """Run the simulation; the same setting gives the same outcome."""
    return _Run(setting).run()
