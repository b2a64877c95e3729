"""Watches the replicas of a teacher: health, failures, restarts, metrics.

    every POLL_S: health? ──► it works ──► which labels are on disk, what it has done so far
                          ├─► a new life, no answer, "died" ──► failed: its requests go elsewhere
                          └─► hangs, or too often failed ──► killed, or not started again

Off the path of the labels: a client notices only which requests it gets from `table`. Nothing
here imports torch (see `router_actor`).
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError, RayError

from raybrew.errors import Event, TeacherDropped, TeacherError
from raybrew.teachers.failure import FailureDecision, FailurePolicy, ReplicaFailure
from raybrew.teachers.router import RoutingTable

POLL_S = 0.5
"""Time between two health checks of a replica."""
HEALTH_TIMEOUT_S = 5.0
"""A health check that takes longer is repeated; see `FailurePolicy.is_unresponsive`."""
IDLE_S = 10.0
"""After so long without work, no client waits for what a replica was handed before."""
LEASE_WAIT_S = 30.0
"""A replica that waits so long for labels of another run is reported."""
REQUESTS_PER_FORWARD = 4
"""Requests that a forward is put together of, at most, where a question has enough examples."""

_STATES = ("forward_s", "lease_wait_s", "queue_age_s", "unwritten_s", "num_waiting")
"""Values of a health check that describe a moment; the others are sums over a replica's life."""


@dataclass(frozen=True)
class HostedTeacher:
    """A teacher of a pool, as the router and the clients know it.

    Args:
        replicas: handles of the actors that host it.
        policy: what is decided when they fail.
        batch_tokens: most tokens of a forward.
    """

    replicas: Sequence[ActorHandle]
    policy: FailurePolicy
    batch_tokens: int


class TeacherMonitor:
    """Watches one teacher.

    Args:
        name: of the teacher.
        hosted: its replicas.
        events: where each fault is added.

    Attributes:
        table: which replica answers which key.
        replicas: in their order.
        left: whether its replicas were released, as all of its labels are in the store.
    """

    def __init__(self, name: str, hosted: HostedTeacher, events: list[Event]):
        self.name, self.policy, self.batch_tokens = name, hosted.policy, hosted.batch_tokens
        self.table = RoutingTable(
            len(hosted.replicas),
            slack_tokens=2 * hosted.batch_tokens,
            least_tokens=hosted.batch_tokens // REQUESTS_PER_FORWARD,
            # A router that was restarted doesn't know the requests before.
            first_number=time.time_ns(),
        )
        self.events = events
        self.replicas = [
            ReplicaState(self, number, handle) for number, handle in enumerate(hosted.replicas)
        ]
        self.left = False
        self.last_failure = "unknown"
        self.down_since_s: float | None = None
        self._dropped = False

    def decide(self) -> None:
        """Return if requests are to wait for a replica, while none is up.

        Raises:
            TeacherDropped: the run goes on without the teacher.
            TeacherError: the run fails.
        """
        all_given_up = all(replica.given_up for replica in self.replicas)
        down_s = 0.0 if self.down_since_s is None else time.monotonic() - self.down_since_s
        decision = self.policy.decide(down_s, all_given_up=all_given_up)
        if decision is FailureDecision.WAIT:
            return
        how = "all of them were given up" if all_given_up else f"for {down_s:.0f} s"
        message = (
            f"teacher {self.name!r}: no replica of {len(self.replicas)} answers ({how}); the last "
            f"failure: {self.last_failure}. The labels that were computed are in the store, and a "
            "new run goes on from them. Where memory is too small, lower batch_tokens or give it "
            "more; look for a death without a reason in Ray's logs, or set on_loss to wait or drop"
        )
        if decision is FailureDecision.FAIL:
            raise TeacherError(message)
        if not self._dropped:
            self._dropped = True
            what = "the others teach without it from now on"
            self.events.append(Event("teacher dropped", f"teacher {self.name!r}", what))
        raise TeacherDropped(message)

    async def check_all(self) -> None:
        """Ask every replica that is up for its health."""
        if not self.left:
            await asyncio.gather(*(each.check() for each in self.replicas if each.is_up))

    def metrics(self) -> dict[str, float]:
        """Return sums over all lives of all replicas, and what they do at the moment."""
        lives = [life for replica in self.replicas for life in replica.metrics.values()]
        now = [list(each.metrics.values())[-1] for each in self.replicas if each.metrics]
        names = [name for life in lives[:1] for name in life if name not in _STATES]
        sums = {name: float(sum(life[name] for life in lives)) for name in names}
        forwards, seconds = sums.pop("examples", 0.0), sums.get("compute_s", 0.0)
        full = sums.get("batches", 0.0) * self.batch_tokens
        return {
            "forwards": forwards,
            "retried": float(self.table.retried),
            "losses": float(self.table.failures),
            **sums,
            "batch_fill": sums["tokens"] / full if full else 0.0,
            "tokens_per_s": sums["tokens"] / seconds if seconds else 0.0,
            "queue_age_s": max((life["queue_age_s"] for life in now), default=0.0),
            "queued_tokens": float(sum(self.table.queued_tokens(r.number) for r in self.replicas)),
        }


class ReplicaState:
    """What is known of a replica, and what is done about it.

    Attributes:
        metrics: by life (process), what that last reported of itself.
        failures: in a row, without an answer in between; see `FailurePolicy.gives_up`.
        given_up: whether it is not started again.
    """

    def __init__(self, teacher: TeacherMonitor, number: int, handle: ActorHandle):
        self._teacher, self.number, self._handle = teacher, number, handle
        self._table = teacher.table
        self._who = f"teacher {teacher.name!r}, replica {number}"
        self.metrics: dict[str, dict[str, float]] = {}
        self.failures = 0
        self.given_up = False
        self._seen_s = time.monotonic()  # when the last check that it answered was sent
        self._idle_since_s: float | None = None
        # Most tokens of a forward, where memory was too small for more.
        self._batch_tokens: int | None = None
        # Lives that were killed, and may answer once more; a life that was reported to wait.
        self._ended: set[str] = set()
        self._waits_in = ""

    @property
    def is_up(self) -> bool:
        """Whether it takes requests."""
        return self._table.is_up(self.number)

    @property
    def epoch(self) -> int:
        """Number of its failures so far."""
        return self._table.epoch(self.number)

    async def watch(self) -> None:
        """Check its health until it is given up, or its teacher leaves."""
        while not (self.given_up or self._teacher.left):
            await self.check()
            await asyncio.sleep(POLL_S)

    async def check(self) -> None:
        """Ask for its health, and act on the answer."""
        epoch, sent_s = self.epoch, time.monotonic()
        call: Any = self._handle.health.options(concurrency_group="control")
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                health: dict[str, Any] = await call.remote(self._batch_tokens)
        except TimeoutError:
            silent_s = time.monotonic() - self._seen_s
            if self._teacher.policy.is_unresponsive(silent_s):
                self._kill(epoch, f"did not answer for {silent_s:.0f} s")
        except RayActorError as error:
            self._note_failure(epoch, "died")
            if isinstance(error, ActorDiedError):
                self._give_up("Ray can't start it")
        except RayError as error:
            self._note_failure(epoch, repr(error))
        else:
            # Else it is of an earlier life, or overtaken by a later check.
            if epoch == self.epoch and sent_s >= self._seen_s:
                self._note_health(sent_s, health)

    def failed(self, epoch: int, failure: ReplicaFailure | None) -> None:
        """Note that a client had no answer of it; None if the process died.

        After a failure of its device or memory it gets another process. Where memory was too
        small, that computes half as many tokens at once.
        """
        if failure is None:
            self._note_failure(epoch, "died")
        elif epoch == self.epoch and self.is_up:
            self._ended.add(failure.life)
            why, smaller = str(failure), self._smaller(failure)
            if smaller is not None:
                self._batch_tokens = smaller
                why += f"; from now on at most {smaller} tokens a forward"
            self._kill(epoch, why, "replica failed", counts=smaller is None)

    def _smaller(self, failure: ReplicaFailure) -> int | None:
        if failure.fault == "memory" and not failure.life:
            # Ray ended the process; which forward it was at is not known.
            before = self._batch_tokens or self._teacher.batch_tokens
            return before // 2 if before > 1 else None
        return failure.smaller

    def _note_health(self, sent_s: float, health: dict[str, Any]) -> None:
        self._seen_s = sent_s
        life = health.pop("life")
        if life in self._ended or self.given_up:
            return
        if self.metrics and life not in self.metrics:
            self._note_failure(self.epoch, "died")  # and came back between two checks
        self.metrics[life] = health
        if not self.is_up:
            self._note_recovery()
        self._table.written(self.number, sent_s - health["unwritten_s"])
        self._note_idleness(sent_s, idle=not health["num_waiting"])
        if health["lease_wait_s"] > LEASE_WAIT_S and self._waits_in != life:
            self._waits_in = life
            what = "waits for labels that another run or process on this store computes"
            self._report("labels elsewhere", what)
        if self._teacher.policy.hangs(health["forward_s"]):
            self._ended.add(life)
            self._kill(self.epoch, f"hung for {health['forward_s']:.1f} s")

    def _note_idleness(self, now_s: float, *, idle: bool) -> None:
        if not idle:
            self._idle_since_s = None
        elif self._idle_since_s is None:
            self._idle_since_s = now_s
        elif now_s - self._idle_since_s > IDLE_S:
            self._table.abandoned(self.number, now_s - IDLE_S, now_s)

    def _note_recovery(self) -> None:
        self._table.recovered(self.number)
        if self._teacher.down_since_s is not None:
            lost_s = round(time.monotonic() - self._teacher.down_since_s, 2)
            self._teacher.down_since_s = None
            what = "waited until it answered again"
            self._report("teacher down", what, lost_s)

    def _kill(
        self, epoch: int, why: str, fault: str = "replica lost", *, counts: bool = True
    ) -> None:
        if epoch == self.epoch and self.is_up:
            ray.kill(self._handle, no_restart=False)
            self._note_failure(epoch, f"{why}; its process was ended", fault, counts=counts)

    def _note_failure(
        self, epoch: int, why: str, fault: str = "replica lost", *, counts: bool = True
    ) -> None:
        teacher = self._teacher
        if teacher.left or not self._table.failed(self.number, epoch):
            return
        teacher.last_failure = why
        what = f"{why}; its requests go to a replica that answers"
        self._report(fault, what)
        self._idle_since_s = None
        self.failures += counts
        if teacher.policy.gives_up(self.failures):
            ray.kill(self._handle, no_restart=True)
            self._give_up(f"failed {self.failures} times in a row")
        if not any(replica.is_up for replica in teacher.replicas):
            teacher.down_since_s = time.monotonic()

    def _give_up(self, why: str) -> None:
        if not self.given_up:
            self.given_up = True
            self._report("replica given up", f"{why}: it is not started again")

    def _report(self, fault: str, what: str, lost_s: float | None = None) -> None:
        self._teacher.events.append(Event(fault, self._who, what, lost_s))
