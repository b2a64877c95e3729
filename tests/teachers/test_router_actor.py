"""A router with replicas that are stand-ins: what it does about those that hang, die, come back."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from raybrew.errors import TeacherDropped, TeacherError
from raybrew.teachers import monitor
from raybrew.teachers.failure import FailurePolicy
from raybrew.teachers.monitor import HostedTeacher
from raybrew.teachers.router_actor import PoolRouter

KEYS = np.random.default_rng(0).integers(0, 2**63, (40, 2)).astype(np.uint64)
ONES = np.ones(40, np.int64)


class Replica:
    """Reports its health as a handle of an actor does."""

    def __init__(self):
        self.error: Exception | None = None
        metrics = ("hits", "batches", "tokens", "examples", "compute_s", "payload_bytes")
        states = ("forward_s", "lease_wait_s", "queue_age_s", "unwritten_s", "num_waiting")
        self.reply: dict[str, Any] = {
            **dict.fromkeys(metrics, 1.0),
            **dict.fromkeys(states, 0.0),
            "life": "first",
        }
        self.checks = 0
        self.health = self

    def options(self, concurrency_group: str) -> "Replica":
        assert concurrency_group == "control"
        return self

    async def remote(self, batch_tokens: int | None) -> dict[str, Any]:
        self.checks += 1
        if self.error is not None:
            raise self.error
        return dict(self.reply)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Replica]:
    killed: list[Replica] = []
    monkeypatch.setattr(monitor, "POLL_S", 0.01)
    monkeypatch.setattr(monitor, "IDLE_S", 0.05)
    monkeypatch.setattr(monitor.ray, "kill", lambda handle, no_restart: killed.append(handle))
    return killed


def router_of(
    replicas: list[Any], on_failure: Any = "fail", *, restarted: bool = False
) -> PoolRouter:
    policy = FailurePolicy(on_failure, 5.0, 0.2)
    return PoolRouter({"a": HostedTeacher(replicas, policy, 1000)}, restarted=restarted)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def checked(replica: Replica, times: int = 3) -> None:
    before = replica.checks
    await until(lambda: replica.checks > before + times)


async def assign(router: PoolRouter, rows: slice = slice(None)) -> list[int]:
    requests = await router.assign("a", KEYS[rows], ONES[rows], most_tokens=1000)
    return [request.replica for request in requests]


def test_one_that_hangs_is_ended_and_taken_again_when_it_is_another(ended):
    async def story() -> None:
        replicas = [Replica(), Replica()]
        router = router_of(replicas)
        await router.begin()
        replicas[1].reply["forward_s"] = 6.0
        await until(lambda: ended)
        assert ended == [replicas[1]]
        assert set(await assign(router)) == {0}
        # The old life may still answer for a moment.
        await asyncio.sleep(0.05)
        assert await router.epochs("a") == [0, 1]
        assert ended == [replicas[1]]
        replicas[1].reply |= {"forward_s": 0.0, "life": "second"}
        table = router._teachers["a"].table
        await until(lambda: table.is_up(1))
        events = await router.take_events()
        assert [event.fault for event in events] == ["replica lost"]
        assert "hung for 6.0 s" in events[0].what
        metrics = (await router.metrics())["a"]
        assert metrics["forwards"] == metrics["tokens"] == 3.0  # of three lives
        assert metrics["losses"] == 1.0

    asyncio.run(story())


@pytest.mark.parametrize(
    ("on_failure", "error"),
    [("fail", TeacherError), ("drop", TeacherDropped)],
    ids=["fail", "drop"],
)
def test_a_teacher_that_ray_gave_up_follows_its_policy(ended, on_failure, error):
    async def story() -> None:
        replica = Replica()
        router = router_of([replica], on_failure)
        await router.begin()
        replica.error = ActorDiedError()
        await until(lambda: router._teachers["a"].replicas[0].given_up)
        with pytest.raises(error, match=r"'a'.*all of them were given up.*last failure: died"):
            await assign(router)
        faults = [event.fault for event in await router.take_events()]
        assert faults[:2] == ["replica lost", "replica given up"]
        assert ("teacher dropped" in faults) == (on_failure == "drop")

    asyncio.run(story())


def test_a_client_waits_for_a_teacher_that_comes_back(ended):
    async def story() -> None:
        replica = Replica()
        router = router_of([replica], "wait")
        await router.begin()
        replica.error = ActorUnavailableError("away", None)
        await until(lambda: not router._teachers["a"].table.is_up(0))
        asked = asyncio.create_task(assign(router))
        await asyncio.sleep(0.4)  # longer than `lost_after_s`
        assert not asked.done()
        replica.error = None
        replica.reply["life"] = "second"
        assert await asked == [0]
        down = (await router.take_events())[-1]
        assert down.fault == "teacher down"
        assert (down.lost_s or 0.0) >= 0.4

    asyncio.run(story())


def test_one_that_does_not_answer_is_ended(ended, monkeypatch):
    async def story() -> None:
        monkeypatch.setattr(monitor, "HEALTH_TIMEOUT_S", 0.01)
        monkeypatch.setattr("raybrew.teachers.failure.UNRESPONSIVE_S", -4.9)  # of 5 s a forward
        replica, free = Replica(), asyncio.Event()
        answer = replica.remote

        async def silent(batch_tokens: int | None) -> dict[str, Any]:
            await free.wait()
            return await answer(batch_tokens)

        monkeypatch.setattr(replica, "remote", silent)
        router = router_of([replica])
        await router.begin()
        await until(lambda: ended)
        free.set()
        replica.reply["life"] = "second"
        table = router._teachers["a"].table
        await until(lambda: table.is_up(0))
        (event, _) = await router.take_events()
        assert "did not answer for 0 s; its process was ended" in event.what

    asyncio.run(story())


def test_what_a_dead_client_left_behind_is_no_work(ended):
    async def story() -> None:
        replica = Replica()
        replica.reply["num_waiting"] = 2
        router = router_of([replica])
        await assign(router)
        table = router._teachers["a"].table
        await asyncio.sleep(0.2)
        assert table.queued_tokens(0) == 40
        replica.reply["num_waiting"] = 0
        await until(lambda: table.queued_tokens(0) == 0)

    asyncio.run(story())


def test_what_a_replica_has_written_may_be_asked_of_any_other(ended):
    async def story() -> None:
        replicas = [Replica(), Replica()]
        for replica in replicas:
            replica.reply |= {"num_waiting": 1, "unwritten_s": 60.0}
        router = router_of(replicas)
        (request,) = await router.assign("a", KEYS[:1], ONES[:1], most_tokens=1000)
        await router.finished("a", request, 1)
        table, holder = router._teachers["a"].table, replicas[request.replica]
        await checked(holder)
        assert table._holder
        holder.reply["unwritten_s"] = 0.0
        await until(lambda: not table._holder)

    asyncio.run(story())


def test_a_label_that_is_not_finished_stays_though_all_others_are_written(ended):
    async def story() -> None:
        replica = Replica()
        replica.reply["num_waiting"] = 1
        router = router_of([replica])
        (done,) = await router.assign("a", KEYS[:30], ONES[:30], most_tokens=1000)
        await router.assign("a", KEYS[30:], ONES[30:], most_tokens=1000)
        await router.finished("a", done, 30)
        table = router._teachers["a"].table
        await until(lambda: len(table._holder) == 10)
        await checked(replica)
        assert len(table._holder) == table.queued_tokens(0) == 10

    asyncio.run(story())


def test_one_that_waits_long_for_another_run_is_reported_once(ended):
    async def story() -> None:
        replica = Replica()
        router = router_of([replica])
        await router.begin()
        replica.reply["lease_wait_s"] = 29.0
        await checked(replica)
        assert await router.take_events() == []
        replica.reply["lease_wait_s"] = 31.0
        await checked(replica)
        (event,) = await router.take_events()
        assert (event.fault, event.who) == ("labels elsewhere", "teacher 'a', replica 0")

    asyncio.run(story())


def test_a_router_that_is_new_watches_when_a_client_only_waits(ended):
    async def story() -> None:
        replica = Replica()
        replica.reply |= {"forward_s": 99.0, "num_waiting": 1}
        router = router_of([replica], restarted=True)
        assert await router.epochs("a") == [0]
        await until(lambda: ended == [replica])
        assert await router.epochs("a") == [1]

    asyncio.run(story())


def test_a_router_that_was_restarted_knows_what_its_replicas_did_and_not_who_asked_before(ended):
    async def story() -> None:
        old = router_of([Replica()])
        (request,) = await old.assign("a", KEYS[:10], ONES[:10], most_tokens=1000)
        replica = Replica()
        replica.reply |= {"examples": 30.0, "num_waiting": 1}
        router = router_of([replica], restarted=True)
        await router.begin()
        await router.assign("a", KEYS[10:], ONES[10:], most_tokens=1000)
        await router.finished("a", request, 10)
        await router.refused("a", request)
        await checked(replica)
        assert (await router.metrics())["a"]["forwards"] == 30
        assert (await router.metrics())["a"]["queued_tokens"] == 30
        (event,) = await router.take_events()
        assert event.fault == "router died"

    asyncio.run(story())


def test_what_ray_loads_beside_the_replicas_and_ranks_is_light():
    # The router with its handles of replicas, the channel, and the callback in Train's controller.
    modules = "raybrew.teachers.router_actor, raybrew.teachers.host, raybrew.runs.events"
    code = (
        f"import sys, {modules}, raybrew.training.ray_train; print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
