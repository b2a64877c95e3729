"""The desk with replicas that are stand-ins: what it does about those that hang, die, come back."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from raybrew.errors import TeacherDropped, TeacherError
from raybrew.teachers import router_actor as desk_module
from raybrew.teachers.failure import FailurePolicy
from raybrew.teachers.host import Entry
from raybrew.teachers.router_actor import Member, PoolRouter

KEYS = np.random.default_rng(0).integers(0, 2**63, (40, 2)).astype(np.uint64)
ONES = np.ones(40, np.int64)
NONE = np.empty(0, np.int64)


class Replica:
    """Tells its health as a handle of an actor does."""

    def __init__(self):
        self.error: Exception | None = None
        self.said: dict[str, Any] = {
            **dict.fromkeys(("hits", "batches", "tokens", "compute_s", "payload_bytes"), 1.0),
            "forward_s": 0.0,
            "others_s": 0.0,
            "queue_age_s": 0.0,
            "waiting": 0,
            "life": "first",
            "answers": [],
            "heard": 0,
            "on_disk": 0,
        }
        self.heard: list[tuple[str, int]] = []
        self.health = self

    def options(self, concurrency_group: str) -> "Replica":
        assert concurrency_group == "control"
        return self

    async def remote(self, life: str, heard: int, batch_tokens: int | None) -> dict[str, Any]:
        self.heard.append((life, heard))
        if self.error is not None:
            raise self.error
        return dict(self.said)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Replica]:
    gone: list[Replica] = []
    monkeypatch.setattr(desk_module, "POLL_S", 0.01)
    monkeypatch.setattr(desk_module, "IDLE_LOOKS", 3)
    monkeypatch.setattr(desk_module.ray, "kill", lambda handle, no_restart: gone.append(handle))
    return gone


def desk_of(replicas: list[Any], on_loss: Any = "fail", *, anew: bool = False) -> PoolRouter:
    return PoolRouter({"a": Member(replicas, FailurePolicy(on_loss, 5.0, 0.2), 1000)}, anew=anew)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def assign(desk: PoolRouter) -> list[int]:
    return [t.replica for t in await desk.assign("a", KEYS, ONES, 1000, False, False)]


def test_one_that_hangs_is_ended_and_taken_again_when_it_is_another(ended):
    async def story() -> None:
        replicas = [Replica(), Replica()]
        desk = desk_of(replicas)
        await desk.begin()
        replicas[1].said["forward_s"] = 6.0
        await until(lambda: ended)
        assert ended == [replicas[1]]
        assert set(await assign(desk)) == {0}
        # The old life may still answer for a moment.
        await asyncio.sleep(0.05)
        assert not await desk.holds("a", 1, 0)
        assert ended == [replicas[1]]
        replicas[1].said |= {"forward_s": 0.0, "life": "second"}
        router = desk._watched["a"].router
        await until(lambda: router.is_up(1))
        events = await desk.take_events()
        assert [event["fault"] for event in events] == ["replica lost"]
        assert "hung for 6.0 s" in events[0]["what"]
        figures = (await desk.figures())["a"]
        assert figures["tokens"] == 3.0  # of three lives
        assert figures["losses"] == 1.0

    asyncio.run(story())


@pytest.mark.parametrize(
    ("on_loss", "error"), [("fail", TeacherError), ("drop", TeacherDropped)], ids=["fail", "drop"]
)
def test_a_teacher_that_ray_gave_up_follows_its_policy(ended, on_loss, error):
    async def story() -> None:
        replica = Replica()
        desk = desk_of([replica], on_loss)
        await desk.begin()
        replica.error = ActorDiedError()
        await until(lambda: desk._watched["a"].gone == [True])
        with pytest.raises(error, match=r"'a'.*all of them were given up.*lost: died"):
            await assign(desk)
        faults = [event["fault"] for event in await desk.take_events()]
        assert faults[:2] == ["replica lost", "replica gone"]
        assert ("teacher dropped" in faults) == (on_loss == "drop")

    asyncio.run(story())


def test_who_asks_waits_for_a_teacher_that_comes_back(ended):
    async def story() -> None:
        replica = Replica()
        desk = desk_of([replica], "wait")
        await desk.begin()
        replica.error = ActorUnavailableError("away", None)
        await until(lambda: not desk._watched["a"].router.is_up(0))
        asked = asyncio.create_task(assign(desk))
        await asyncio.sleep(0.4)  # longer than `lost_after_s`
        assert not asked.done()
        replica.error = None
        replica.said["life"] = "second"
        assert await asked == [0]
        down = (await desk.take_events())[-1]
        assert down["fault"] == "teacher down"
        assert down["lost_s"] >= 0.4

    asyncio.run(story())


def test_what_a_dead_asker_left_behind_is_no_work(ended):
    async def story() -> None:
        replica = Replica()
        replica.said["waiting"] = 2
        desk = desk_of([replica])
        await assign(desk)
        router = desk._watched["a"].router
        await asyncio.sleep(0.2)
        assert router.queued_tokens(0) == 40
        replica.said["waiting"] = 0
        await until(lambda: router.queued_tokens(0) == 0)

    asyncio.run(story())


def test_what_a_replica_tells_of_questions_whose_asker_died_is_counted_once(ended):
    async def story() -> None:
        replica = Replica()
        replica.said["waiting"] = 1
        desk = desk_of([replica])
        (first, *_) = await desk.assign("a", KEYS[:30], ONES[:30], 1000, False, False)
        (second,) = await desk.assign("a", KEYS[30:], ONES[30:], 1000, False, False)
        # Told again and again, as looks that overlap do; the second one's asker lives.
        replica.said["answers"] = [
            Entry(1, first.number, np.ones(30, bool), NONE),
            Entry(2, second.number, np.arange(10) < 4, NONE),
        ]
        router = desk._watched["a"].router
        await until(lambda: router.counts.forwards)
        await desk.finished("a", second, np.arange(10) < 4, NONE)
        await until(lambda: replica.heard.count(("first", 2)) > 2)
        assert router.counts.forwards == 34
        assert router.queued_tokens(0) == 0
        # Another life has a ledger of its own, that begins with 1.
        replica.said |= {"life": "second", "answers": []}
        await until(lambda: ("second", 0) in replica.heard)

    asyncio.run(story())


def test_what_a_replica_has_written_of_itself_may_be_asked_of_anybody(ended):
    async def story() -> None:
        replicas = [Replica(), Replica()]
        for replica in replicas:
            replica.said["waiting"] = 1
        desk = desk_of(replicas)
        (first, *_) = await desk.assign("a", KEYS[:1], ONES[:1], 1000, False, False)
        holder = replicas[first.replica]
        holder.said["answers"] = [Entry(1, first.number, np.ones(1, bool), NONE)]
        router = desk._watched["a"].router
        await until(lambda: router.counts.forwards)
        assert router._holder
        holder.said["on_disk"] = 1
        await until(lambda: not router._holder)

    asyncio.run(story())


def test_a_desk_that_is_new_watches_when_somebody_only_waits(ended):
    async def story() -> None:
        replica = Replica()
        replica.said |= {"forward_s": 99.0, "waiting": 1}
        desk = desk_of([replica], anew=True)
        assert await desk.holds("a", 0, 0)
        await until(lambda: ended == [replica])
        assert not await desk.holds("a", 0, 0)

    asyncio.run(story())


def test_a_desk_that_begins_anew_hears_of_replicas_what_they_had_told_the_one_before(ended):
    async def story() -> None:
        old = desk_of([Replica()])
        (ticket,) = await old.assign("a", KEYS[:10], ONES[:10], 1000, False, False)
        replica = Replica()
        replica.said |= {"heard": 20, "answers": [Entry(5, ticket.number, np.ones(10, bool), NONE)]}
        desk = desk_of([replica], anew=True)
        await desk.begin()
        # Its asker tells of it as well, before or after.
        await desk.finished("a", ticket, np.ones(10, bool), NONE)
        router = desk._watched["a"].router
        await until(lambda: replica.heard.count(("first", 5)) > 2)
        assert router.counts.forwards == 30
        (event,) = await desk.take_events()
        assert event["fault"] == "desk died"

    asyncio.run(story())


def test_who_waits_long_for_another_run_says_so_once(ended):
    async def story() -> None:
        replica = Replica()
        desk = desk_of([replica])
        await desk.begin()
        replica.said["others_s"] = 29.0
        await until(lambda: len(replica.heard) > 3)
        assert await desk.take_events() == []
        replica.said["others_s"] = 31.0
        looks = len(replica.heard)
        await until(lambda: len(replica.heard) > looks + 3)
        (event,) = await desk.take_events()
        assert (event["fault"], event["who"]) == ("labels elsewhere", "teacher 'a', replica 0")

    asyncio.run(story())


def test_what_ray_loads_beside_the_replicas_and_ranks_is_light():
    # The desk with its handles of replicas, the mailbox, and the callback in Train's controller.
    modules = "raybrew.teachers.router_actor, raybrew.teachers.host, raybrew.runs.events"
    code = f"import sys, {modules}, raybrew.training.faults; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
