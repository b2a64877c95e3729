"""The pool's router as an actor: hands requests to replicas, and watches the replicas."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import ray
from ray import cloudpickle
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybrew.errors import LabelsLost, TeacherDropped, TeacherError
from raybrew.teachers.failure import FailureDecision, FailurePolicy, ReplicaFailure
from raybrew.teachers.host import Entry
from raybrew.teachers.router import Counters, Router, Ticket

# What a teacher's replicas did in all their lives, and what they are at, as figures.

_OF_NOW = ("forward_s", "others_s", "queue_age_s", "waiting", "examples")
"""What health tells that is no sum, and what the router counts itself."""


def teacher_metrics(
    lives: Sequence[Mapping[str, Mapping[str, float]]],
    counts: Counters,
    batch_tokens: int,
    queued_tokens: int,
) -> dict[str, float]:
    """Add the lives up.

    Args:
        lives: by replica, by life of it, in their order: what it last said of itself.
        counts: of the router.
        batch_tokens: most tokens of a forward.
        queued_tokens: that the replicas were handed and have not answered.
    """
    every = [said for by_life in lives for said in by_life.values()]
    now = [list(by_life.values())[-1] for by_life in lives if by_life]
    names = [name for each in every[:1] for name in each if name not in _OF_NOW]
    sums = {name: float(sum(each[name] for each in every)) for name in names}
    full = sums.get("batches", 0.0) * batch_tokens
    seconds = sums.get("compute_s", 0.0)
    return {
        **{name: float(count) for name, count in asdict(counts).items()},
        **sums,
        "batch_fill": sums["tokens"] / full if full else 0.0,
        "tokens_per_s": sums["tokens"] / seconds if seconds else 0.0,
        "queue_age_s": max((each["queue_age_s"] for each in now), default=0.0),
        "queued_tokens": float(queued_tokens),
    }


# A teacher of the pool as the desk sees it.


@dataclass(frozen=True)
class Member:
    """A teacher of the pool.

    Args:
        replicas: handles of the actors that host it.
        policy: what is decided when they fail.
        batch_tokens: most tokens of a forward.
    """

    replicas: Sequence[ActorHandle]
    policy: FailurePolicy
    batch_tokens: int


@dataclass
class Watched:
    """What the desk knows of a teacher."""

    member: Member
    router: Router
    # By replica, by life of it: what it last said of itself.
    lives: list[dict[str, dict[str, float]]]
    gone: list[bool]
    seen_s: list[float]
    down_since: float | None = None
    ended: set[str] = field(default_factory=set)
    # Lives that were said to wait for other runs.
    patient: set[str] = field(default_factory=set)
    # By replica: marks of the looks since it has had nothing to do.
    idle: dict[int, list[int]] = field(default_factory=dict)
    # By replica: which life of it was heard last, and up to which place of its ledger.
    heard: dict[int, tuple[str, int]] = field(default_factory=dict)
    # By replica: what its life told, as far as that is perhaps not on disk.
    told: dict[int, deque[Entry]] = field(default_factory=dict)
    dropped: bool = False
    # By replica: most tokens of a forward, where memory was too small for more.
    batch_tokens: dict[int, int] = field(default_factory=dict)
    # By replica: losses in a row, without an answer in between; see `FailurePolicy.gives_up`.
    losses: Counter[int] = field(default_factory=Counter)
    last_loss: str = ""
    # Whether its replicas have left, since all of its labels are in the store.
    left: bool = False


# The pool's front desk, an actor: who answers what, who is alive, and what has happened so far.
#
#     asker ──keys──► Desk ──tickets──► asker ──examples──► replica ──labels──► asker
#                      │ watches the replicas: health, forwards that hang, new lives
#
# Only keys and counts pass it. What it decides is in `router` and `policy`; here is what does it.

POLL_S = 0.5
IDLE_LOOKS = 20
"""Looks at a replica that has nothing to do, after which what it was handed is nobody's."""
TICKETS_OF_A_FORWARD = 4
"""Requests that a forward is put together of, at most, where a question has enough examples."""
OTHERS_S = 30.0
"""So long a replica waits for another run's labels before that is said."""
ANSWER_S = 5.0
"""A health check that takes longer is asked again; see `FailurePolicy.is_unresponsive`."""


class PoolRouter:
    """Keeps the books of a pool; a plain class that `desk_actor` wraps in an actor."""

    def __init__(self, members: Mapping[str, Member], *, anew: bool = False):
        now = time.monotonic()
        self._watched = {
            name: Watched(
                member,
                Router(
                    len(member.replicas),
                    slack_tokens=2 * member.batch_tokens,
                    least_tokens=member.batch_tokens // TICKETS_OF_A_FORWARD,
                    # A desk that died and lives again knows nothing of the tickets before.
                    first_number=time.time_ns(),
                ),
                [{} for _ in member.replicas],
                [False] * len(member.replicas),
                [now] * len(member.replicas),
            )
            for name, member in members.items()
        }
        self._tasks: list[asyncio.Task] = []
        self._events: list[dict[str, Any]] = []
        if anew:
            self._say_of("desk died", "the teachers' desk", "it began anew, and asks the replicas")

    async def begin(self) -> None:
        """Begin to watch; called when the teachers are loaded, and by itself in a new life."""
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._watch(name, number))
                for name, watched in self._watched.items()
                for number in range(len(watched.member.replicas))
            ]

    async def assign(
        self,
        teacher: str,
        keys: np.ndarray,
        tokens: np.ndarray,
        most_tokens: int,
        together: bool,
        again: bool,
        avoid: Sequence[int] = (),
    ) -> list[Ticket]:
        """Hand a question out, when there is a replica; see `Router.assign`.

        Raises:
            LabelsLost: every label was in the store, so that its replicas left or never started.
            TeacherDropped: nobody hosts the teacher any longer, its policy is `drop`.
            TeacherError: the same with policy `fail`.
        """
        await self.begin()
        while True:
            watched = self._watched.get(teacher)
            if watched is None or watched.left:
                raise LabelsLost(
                    f"teacher {teacher!r}: {len(keys)} labels are missing from the store, which "
                    "had all of its labels before; its replicas start again to compute them"
                )
            tickets = watched.router.assign(
                keys,
                tokens,
                most_tokens=most_tokens,
                together=together,
                again=again,
                avoid=avoid,
            )
            if tickets is not None:
                return tickets
            self._decide(teacher, watched)
            await asyncio.sleep(POLL_S / 2)

    async def finished(
        self, teacher: str, ticket: Ticket, computed: np.ndarray, left: np.ndarray
    ) -> None:
        """Note an answer that its asker has; see `Router.answered`."""
        await self.begin()
        watched = self._watched[teacher]
        if computed.any():
            watched.losses[ticket.replica] = 0
        if watched.router.knows(ticket.number):
            watched.router.answered(ticket.replica, ticket.number, computed, left)
        # A ticket of the desk before this one: the replica tells what it cost.

    async def refused(self, teacher: str, ticket: Ticket) -> None:
        """Note an error; see `Router.refused`."""
        self._watched[teacher].router.refused(ticket)

    async def lost(self, teacher: str, replica: int, epoch: int, why: str) -> None:
        """Note that a replica could not be reached in that life of it."""
        self._note_loss(teacher, replica, epoch, why)

    async def failed(self, teacher: str, replica: int, epoch: int, failure: ReplicaFailure) -> None:
        """Note that a replica's device or memory failed; it gets another process.

        Where memory was too small, it computes half as many tokens at once from then on.
        """
        watched = self._watched[teacher]
        if epoch != watched.router.epoch(replica) or not watched.router.is_up(replica):
            return
        watched.ended.add(failure.life)
        why, smaller = str(failure), self._smaller(watched, replica, failure)
        if smaller is not None:
            watched.batch_tokens[replica] = smaller
            why += f"; from now on at most {smaller} tokens a forward"
        self._end(teacher, replica, epoch, why, fault="replica failed", counts=smaller is None)

    def _smaller(self, watched: Watched, replica: int, failure: ReplicaFailure) -> int | None:
        if failure.fault == "memory" and not failure.life:
            # Ray ended the process; what it was at is not known.
            before = watched.batch_tokens.get(replica, watched.member.batch_tokens)
            return before // 2 if before > 1 else None
        return failure.smaller

    async def holds(self, teacher: str, replica: int, epoch: int) -> bool:
        """Return whether a replica is still in that life, so that its answer may come."""
        await self.begin()  # who waits for an answer asks a new desk nothing else
        watched = self._watched[teacher]
        return watched.router.epoch(replica) == epoch and not watched.left

    async def lives(self, teacher: str) -> tuple[int, list[int]]:
        """Return a mark (see `Router.mark`) and which life each replica is in; none that left."""
        watched = self._watched[teacher]
        count = 0 if watched.left else len(watched.member.replicas)
        return watched.router.mark(), [watched.router.epoch(number) for number in range(count)]

    async def written(self, teacher: str, replica: int, epoch: int, mark: int) -> None:
        """Note that a replica has written; see `Router.written`."""
        self._watched[teacher].router.written(replica, epoch, mark)

    async def leave(self, teacher: str) -> bool:
        """Let the replicas of a teacher go whose labels are all on disk.

        Returns:
            Whether they may be ended: not while somebody waits for an answer.
        """
        watched = self._watched[teacher]
        await self._check_all(teacher)  # for its last figures
        watched.left = watched.router.is_idle()
        return watched.left

    async def take_events(self) -> list[dict[str, Any]]:
        """Return what was survived since the last call: `fault`, `who`, `what`, `lost_s`."""
        taken, self._events = self._events, []
        return taken

    async def figures(self) -> dict[str, dict[str, float]]:
        """Return, by teacher, what its replicas did in all their lives; asks those that are up."""
        await asyncio.gather(*map(self._check_all, self._watched))
        return {name: self._figures_of(watched) for name, watched in self._watched.items()}

    async def _check_all(self, teacher: str) -> None:
        watched = self._watched[teacher]
        up = [n for n in range(len(watched.member.replicas)) if watched.router.is_up(n)]
        await asyncio.gather(*(self._check(teacher, n) for n in up if not watched.left))

    def _figures_of(self, watched: Watched) -> dict[str, float]:
        router, lanes = watched.router, range(len(watched.member.replicas))
        queued = sum(router.queued_tokens(number) for number in lanes)
        return teacher_metrics(watched.lives, router.counts, watched.member.batch_tokens, queued)

    def _decide(self, teacher: str, watched: Watched) -> None:
        now = time.monotonic()
        down_s = now - (watched.down_since if watched.down_since is not None else now)
        verdict = watched.member.policy.verdict(down_s, gone=all(watched.gone))
        if verdict is FailureDecision.WAIT:
            return
        how = "all of them were given up" if all(watched.gone) else f"for {down_s:.0f} s"
        message = (
            f"teacher {teacher!r}: no replica of {len(watched.gone)} answers ({how}); the last one "
            f"that was lost: {watched.last_loss or 'unknown'}. The labels that it gave are in the "
            "store, so that a new run goes on from them. Where memory is too small, lower "
            "batch_tokens or give it more; look for a death without a reason in Ray's logs, or set "
            "on_loss to wait or drop"
        )
        if verdict is FailureDecision.FAIL:
            raise TeacherError(message)
        if not watched.dropped:
            watched.dropped = True
            self._say("teacher dropped", teacher, None, "the others teach without it from now on")
        raise TeacherDropped(message)

    async def _watch(self, teacher: str, number: int) -> None:
        watched = self._watched[teacher]
        while not (watched.gone[number] or watched.left):
            await self._check(teacher, number)
            await asyncio.sleep(POLL_S)

    async def _check(self, teacher: str, number: int) -> None:
        watched = self._watched[teacher]
        handle, policy = watched.member.replicas[number], watched.member.policy
        epoch = watched.router.epoch(number)
        call: Any = handle.health.options(concurrency_group="control")
        try:
            async with asyncio.timeout(ANSWER_S):
                health: dict[str, Any] = await call.remote(
                    *watched.heard.get(number, ("", 0)), watched.batch_tokens.get(number)
                )
        except TimeoutError:
            silent_s = time.monotonic() - watched.seen_s[number]
            if watched.router.is_up(number) and policy.is_unresponsive(silent_s):
                self._end(teacher, number, epoch, f"said nothing for {silent_s:.0f} s")
            return
        except RayActorError as error:
            self._note_loss(teacher, number, epoch, "died")
            if isinstance(error, ActorDiedError):
                self._note_end(teacher, number, "Ray can't start it")
            return
        except RayError as error:
            self._note_loss(teacher, number, epoch, repr(error))
            return
        if epoch == watched.router.epoch(number):  # no word of the life before
            self._note_health(teacher, number, epoch, health)

    def _note_health(self, teacher: str, number: int, epoch: int, health: dict[str, Any]) -> None:
        watched = self._watched[teacher]
        watched.seen_s[number] = time.monotonic()
        life, lives = health.pop("life"), watched.lives[number]
        answers, heard, on_disk = (health.pop(key) for key in ("answers", "heard", "on_disk"))
        if life in watched.ended or watched.gone[number]:
            return
        if lives and life not in lives and watched.router.is_up(number):
            # It died and came back between two looks.
            self._note_loss(teacher, number, epoch, "died")
        lives[life] = health
        self._hear(watched, number, life, answers, heard)
        self._note_written(watched, number, on_disk)
        if not watched.router.is_up(number):
            self._note_return(teacher, number)
        self._note_idleness(watched, number, idle=not health["waiting"])
        if health["others_s"] > OTHERS_S and life not in watched.patient:
            watched.patient.add(life)
            what = "waits for labels that another run or process on this store is computing"
            self._say("labels elsewhere", teacher, number, what)
        forward_s = float(health["forward_s"])
        if watched.member.policy.hangs(forward_s):
            watched.ended.add(life)
            self._end(teacher, number, watched.router.epoch(number), f"hung for {forward_s:.1f} s")

    def _hear(
        self, watched: Watched, number: int, life: str, answers: Sequence[Entry], heard: int
    ) -> None:
        known, place = watched.heard.get(number, ("", 0))
        if known != life:
            # Another desk heard them, if there was one before this one.
            watched.router.answered_before(heard)
            watched.told[number] = deque()
            place = 0
        if any(entry.computed.any() for entry in answers):
            watched.losses[number] = 0
        for entry in answers:
            # Looks overlap: what one has told, another one may tell again.
            if entry.place > place:
                watched.router.answered(number, entry.ticket, entry.computed, entry.left)
                watched.told[number].append(entry)
                place = entry.place
        watched.heard[number] = (life, place)

    def _note_written(self, watched: Watched, number: int, on_disk: int) -> None:
        told, tickets = watched.told[number], []
        while told and told[0].place <= on_disk:
            tickets.append(told.popleft().ticket)
        watched.router.on_disk(number, tickets)

    def _note_idleness(self, watched: Watched, number: int, *, idle: bool) -> None:
        marks = watched.idle.setdefault(number, [])
        if not idle:
            marks.clear()
            return
        marks.append(watched.router.mark())
        if len(marks) > IDLE_LOOKS:
            watched.router.abandon(number, marks.pop(0))

    def _note_return(self, teacher: str, number: int) -> None:
        watched = self._watched[teacher]
        watched.router.back(number)
        if watched.down_since is not None:
            lost_s = round(time.monotonic() - watched.down_since, 2)
            watched.down_since = None
            self._say("teacher down", teacher, number, "waited until it was back", lost_s)

    def _end(
        self,
        teacher: str,
        number: int,
        epoch: int,
        why: str,
        *,
        fault: str = "replica lost",
        counts: bool = True,
    ) -> None:
        ray.kill(self._watched[teacher].member.replicas[number], no_restart=False)
        why = f"{why}; its process was ended"
        self._note_loss(teacher, number, epoch, why, fault=fault, counts=counts)

    def _note_loss(
        self,
        teacher: str,
        number: int,
        epoch: int,
        why: str,
        *,
        fault: str = "replica lost",
        counts: bool = True,
    ) -> None:
        watched = self._watched[teacher]
        if watched.left or not watched.router.lost(number, epoch):
            return
        watched.last_loss = why
        what = f"{why}; its requests go to a replica that answers"
        self._say(fault, teacher, number, what)
        watched.losses[number] += counts
        if watched.member.policy.gives_up(watched.losses[number]):
            ray.kill(watched.member.replicas[number], no_restart=True)
            self._note_end(teacher, number, f"lost {watched.losses[number]} times in a row")
        if not any(watched.router.is_up(n) for n in range(len(watched.gone))):
            watched.down_since = time.monotonic()

    def _note_end(self, teacher: str, number: int, why: str) -> None:
        watched = self._watched[teacher]
        if not watched.gone[number]:
            watched.gone[number] = True
            self._say("replica gone", teacher, number, f"{why}: it is not started again")

    def _say(
        self,
        fault: str,
        teacher: str,
        number: int | None,
        what: str,
        lost_s: float | None = None,
    ) -> None:
        who = f"teacher {teacher!r}" + ("" if number is None else f", replica {number}")
        self._say_of(fault, who, what, lost_s)

    def _say_of(self, fault: str, who: str, what: str, lost_s: float | None = None) -> None:
        self._events.append({"fault": fault, "who": who, "what": what, "lost_s": lost_s})


# The desk as an actor. Nothing here imports torch, so that it is there within a second.


def start_router(members: Mapping[str, Member], max_concurrency: int) -> ActorHandle:
    """Start a desk on this process's node, whose death both die of; it costs no CPU.

    Args:
        members: by name; whoever starts it holds their replicas for as long as there is a desk.
        max_concurrency: calls that wait in it at once.
    """
    here = ray.get_runtime_context().get_node_id()
    actor: Any = ray.remote(_RouterActor)
    return actor.options(
        num_cpus=0,
        max_concurrency=max_concurrency,
        max_restarts=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
    ).remote(cloudpickle.dumps(dict(members)))  # pyright: ignore[reportPrivateImportUsage]


class _RouterActor(PoolRouter):
    # Its members as bytes: an actor whose arguments hold handles may not come back (Ray #53727).
    def __init__(self, members: bytes):
        context: Any = ray.get_runtime_context()
        super().__init__(cloudpickle.loads(members), anew=context.was_current_actor_reconstructed)
