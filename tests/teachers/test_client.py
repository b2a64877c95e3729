"""What a rank gets of a pool whose replicas are stand-ins, through the pool's own router.

No Ray runs: a call of a stand-in is a coroutine, as awaiting a call of an actor is.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
from ray.exceptions import (
    ActorUnavailableError,
    ObjectFetchTimedOutError,
    ObjectLostError,
    OutOfMemoryError,
    OwnerDiedError,
    RayTaskError,
)

from raybrew.data.encoding import EncodedView, encode
from raybrew.data.payload import Payload, Signal
from raybrew.errors import LabelsLost, TeacherError
from raybrew.teachers import client as client_module
from raybrew.teachers import monitor, router_actor
from raybrew.teachers.client import Credits, EventLoopThread, PoolClient
from raybrew.teachers.failure import FailurePolicy, ReplicaFailure
from raybrew.teachers.monitor import HostedTeacher
from raybrew.teachers.replica import Answer
from raybrew.teachers.router_actor import PoolAddress, PoolRouter, remote_router
from tests.made import make_data, make_tokenizer

SIGNALS = (Signal(),)
VIEW = encode(make_tokenizer(), make_data(24)["text"][:], None, 32)[0]
ALL = np.arange(len(VIEW))


class Method:
    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def remote(self, *arguments: Any, **named: Any) -> Any:
        return self._function(*arguments, **named)

    def options(self, **_: Any) -> "Method":
        return self


class Actor:
    """Calls of a plain object, as those of an actor's handle."""

    def __init__(self, inner: Any):
        self._inner = inner

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self._inner, name))


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("ask", "its traceback", cause, "", 0, "")


class Replica:
    """Answers with what the key says; `faults` are raised in the place of answers, in order."""

    def __init__(self, number: int):
        self.number = number
        self.life = 0
        self.faults: list[Exception] = []
        self.bad: np.ndarray | None = None  # a key that no replica can answer
        self.asked: list[np.ndarray] = []
        self.alone: list[bool] = []
        self.batch_tokens: list[int | None] = []
        self.most_at_once = self._at_once = 0

    async def ask(self, view: EncodedView, signals: tuple[Signal, ...], alone: bool) -> Answer:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await asyncio.sleep(0.002)
        finally:
            self._at_once -= 1
        self.asked.append(view.keys)
        self.alone.append(alone)
        if self.faults:
            raise self.faults.pop(0)
        if self.bad is not None and (view.keys == self.bad).all(axis=1).any():
            raise task_error(self.failure("device", len(view), alone=alone))
        values = (view.keys % np.uint64(1009)).astype(np.float32)
        return Answer({SIGNALS[0].name: Payload(values)}, np.ones(len(view), bool))

    async def flush(self) -> None: ...

    def failure(self, fault: Any, examples: int, *, alone: bool) -> ReplicaFailure:
        life = f"{self.number}.{self.life}"
        return ReplicaFailure(fault, "CUDA error: broken", life, examples, 64, alone)

    async def health(self, batch_tokens: int | None) -> dict[str, Any]:
        self.batch_tokens.append(batch_tokens)
        states = ("forward_s", "lease_wait_s", "queue_age_s", "unwritten_s", "num_waiting")
        return {
            **dict.fromkeys((*states, "batches", "tokens", "compute_s"), 0.0),
            "examples": float(sum(map(len, self.asked))),
            "life": f"{self.number}.{self.life}",
        }


class Pool:
    def __init__(self, replicas: int, on_failure: Any = "fail"):
        self.replicas = [Replica(number) for number in range(replicas)]
        handles: list[Any] = [Actor(replica) for replica in self.replicas]
        self.ended: list[tuple[int, bool]] = []
        teachers = {"a": HostedTeacher(handles, FailurePolicy(on_failure, 5.0, 0.5), 64)}
        self.router = PoolRouter(teachers)
        actor: Any = Actor(self.router)
        self.client = PoolClient(PoolAddress(actor, teachers))
        self.remote = remote_router(actor)

    def kill(self, handle: Actor, no_restart: bool) -> None:
        replica: Replica = handle._inner
        self.ended.append((replica.number, no_restart))
        replica.life += 1

    def ask(self, rows: np.ndarray) -> np.ndarray:
        pending = self.client.ask("a", VIEW.take(rows), SIGNALS)
        return pending.result(timeout=60)[SIGNALS[0].name].values

    def events(self) -> list[tuple[str, str]]:
        events = self.client.wait_for(self.remote.take_events())
        return [(event.fault, event.what) for event in events]


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Pool]]:
    made: list[Pool] = []

    def make(replicas: int, on_failure: Any = "fail") -> Pool:
        made.append(Pool(replicas, on_failure))
        monkeypatch.setattr(monitor.ray, "kill", made[-1].kill)
        return made[-1]

    monkeypatch.setattr(monitor, "POLL_S", 0.01)
    monkeypatch.setattr(client_module, "LOOK_S", 0.02)
    monkeypatch.setattr(router_actor, "RETRY_S", 0.02)
    yield make
    for each in made:
        each.client.close()


def expected(rows: np.ndarray) -> np.ndarray:
    return (VIEW.keys[rows] % np.uint64(1009)).astype(np.float32)


def asked(pool: Pool) -> list[bytes]:
    return [key.tobytes() for r in pool.replicas for keys in r.asked for key in keys]


def test_answers_come_in_the_order_of_the_question_and_equal_examples_are_asked_for_once(pools):
    pool = pools(3)
    rows = np.concatenate([ALL[::-1], ALL[5:9], ALL[:2]])
    np.testing.assert_array_equal(pool.ask(rows), expected(rows))
    assert len(asked(pool)) == len(set(asked(pool))) == len(ALL)
    # Whole requests of at most a forward's tokens, for more than one replica.
    assert sum(bool(replica.asked) for replica in pool.replicas) > 1


@pytest.mark.parametrize(
    "fault",
    [
        ActorUnavailableError("away", None),
        ObjectLostError("00" * 28, None, ""),
        OwnerDiedError("00" * 28, None, ""),
        ObjectFetchTimedOutError("00" * 28, None, ""),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_what_is_lost_on_its_way_is_asked_for_again(pools, fault):
    pool = pools(2)
    for replica in pool.replicas:
        replica.faults.append(fault)
    np.testing.assert_array_equal(pool.ask(ALL), expected(ALL))
    assert len(asked(pool)) > len(ALL)


def test_an_error_of_ours_is_raised_as_it_was_and_others_name_the_teacher(pools):
    pool = pools(1)
    pool.replicas[0].faults = [task_error(TeacherError("NaN for example 7"))]
    with pytest.raises(TeacherError, match=r"^NaN for example 7$"):
        pool.ask(ALL[:1])
    pool.replicas[0].faults = [task_error(IndexError("index out of range in self"))]
    with pytest.raises(TeacherError, match=r"teacher 'a' failed: IndexError\('index out of"):
        pool.ask(ALL[:1])
    # No replica holds its labels: the next client that asks gets them.
    np.testing.assert_array_equal(pool.ask(ALL[:1]), expected(ALL[:1]))
    assert pool.ended == []


def test_a_sick_replica_gets_another_process_and_its_requests_go_elsewhere_alone(pools):
    pool = pools(2)
    sick, well = pool.replicas
    sick.faults = [task_error(sick.failure("device", 4, alone=False))]
    np.testing.assert_array_equal(pool.ask(ALL), expected(ALL))
    assert pool.ended == [(0, False)]
    # What it failed with has no company, where it is asked again.
    assert any(well.alone)
    assert not any(sick.alone)
    ((fault, what),) = pool.events()
    assert fault == "replica failed"
    assert "CUDA error: broken" in what


def test_one_that_fails_whatever_it_is_asked_is_given_up_while_its_neighbour_does_the_work(pools):
    pool = pools(2)
    sick = pool.replicas[0]
    failure = ReplicaFailure("device", "CUDA error: broken", "", 4, 64, True)
    sick.faults = [task_error(failure) for _ in range(40)]
    for _ in range(100):
        np.testing.assert_array_equal(pool.ask(ALL), expected(ALL))
        pool.client.flush()  # so that the next question is a new one
        if pool.router._teachers["a"].replicas[0].given_up:
            break
    assert pool.ended == [(0, False)] * 4 + [(0, True)]
    assert [fault for fault, _ in pool.events()] == ["replica failed"] * 4 + ["replica given up"]
    before = len(sick.asked)
    np.testing.assert_array_equal(pool.ask(ALL), expected(ALL))
    assert len(sick.asked) == before


def test_a_request_that_two_replicas_fail_on_alone_is_at_fault_and_the_others_are_answered(pools):
    pool = pools(3)
    for replica in pool.replicas:
        replica.bad = VIEW.keys[3]
    good = [pool.client.ask("a", VIEW.take(ALL[n : n + 1]), SIGNALS) for n in range(8) if n != 3]
    with pytest.raises(TeacherError, match=r"'a'.*failed 3 times on a request of 1 examples"):
        pool.ask(ALL[3:4])
    got = np.concatenate([each.result()[SIGNALS[0].name].values for each in good])
    np.testing.assert_array_equal(got, expected(np.delete(ALL[:8], 3)))
    failed = [number for number, _ in pool.ended]
    assert len(failed) == len(set(failed))  # each time another one
    assert len(failed) == 3  # with others, and twice alone


def test_too_little_memory_halves_what_that_replica_computes_at_once(pools):
    pool = pools(1)
    (replica,) = pool.replicas
    for tokens in (64, 32, 16):
        failure = ReplicaFailure("memory", "CUDA out of memory", "", 4, tokens, True)
        replica.faults.append(task_error(failure))
    failure.life = "none"
    np.testing.assert_array_equal(pool.ask(ALL[:4]), expected(ALL[:4]))
    assert [each for each in dict.fromkeys(replica.batch_tokens) if each] == [32, 16, 8]
    # None of them counts as a loss that a replica is given up for.
    assert pool.ended == [(0, False)] * 3
    reported = [what for fault, what in pool.events() if fault == "replica failed"]
    assert ["at most 32 tokens" in what for what in reported] == [True, False, False]


def test_a_single_example_that_memory_is_too_small_for_is_named_with_its_length(pools):
    pool = pools(1)
    length = int(VIEW.lengths[0])
    failure = ReplicaFailure("memory", "CUDA out of memory", "x", 1, length, True)
    pool.replicas[0].faults = [task_error(failure), task_error(failure)]
    pattern = rf"'a'.*a single example of {length} tokens needs more memory.*max_length"
    with pytest.raises(TeacherError, match=pattern):
        pool.ask(ALL[:1])
    assert len(pool.ended) == 2


def test_a_process_that_ray_ends_for_memory_is_a_failure_of_memory(pools):
    pool = pools(1)
    pool.replicas[0].faults = [OutOfMemoryError("the node is low on memory")]
    np.testing.assert_array_equal(pool.ask(ALL[:4]), expected(ALL[:4]))
    what = dict(pool.events())["replica failed"]
    assert "low on memory; from now on at most 32 tokens" in what


def test_a_client_has_no_more_under_way_with_a_replica_than_its_credit(pools, monkeypatch):
    monkeypatch.setattr(client_module, "MAX_REQUESTS", 2)
    pool = pools(1)
    pending = [pool.client.ask("a", VIEW.take(ALL[n : n + 1]), SIGNALS) for n in range(12)]
    got = np.concatenate([each.result()[SIGNALS[0].name].values for each in pending])
    np.testing.assert_array_equal(got, expected(ALL[:12]))
    assert pool.replicas[0].most_at_once == 2


def test_a_router_that_cannot_be_reached_is_tried_again_and_then_an_error(pools, monkeypatch):
    pool = pools(1)
    calls = []

    async def away(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise ActorUnavailableError("away", None)

    monkeypatch.setattr(pool.router, "assign", away)
    with pytest.raises(TeacherError, match="the teachers' router can't be reached"):
        pool.ask(ALL[:1])
    assert len(calls) == router_actor.ATTEMPTS


def test_a_teacher_leaves_when_no_client_waits_for_it_and_is_missed_afterwards(pools):
    pool = pools(1)
    wait_for, router = pool.client.wait_for, pool.remote
    (request,) = wait_for(router.assign("a", VIEW.keys[:1], VIEW.lengths[:1], most_tokens=64))
    assert not wait_for(router.release("a"))
    wait_for(router.finished("a", request, 1))
    pool.ask(ALL[1:2])
    assert wait_for(router.release("a"))
    with pytest.raises(LabelsLost, match="'a': 24 labels are missing from the store"):
        pool.ask(ALL)
    pool.client.flush()  # a teacher that has left has nothing to write
    assert wait_for(router.metrics())["a"]["forwards"] == 1
    with pytest.raises(LabelsLost, match="'b'"):  # never started: its labels were all there
        pool.client.ask("b", VIEW, SIGNALS).result()


def test_credits_bound_requests_and_bytes():
    credits = Credits(max_requests=3, max_bytes=100)
    assert credits.take(1000)  # alone, even the large one
    assert not credits.take(1)
    credits.give_back(1000)
    assert [credits.take(40) for _ in range(3)] == [True, True, False]
    assert credits.take(0)
    assert not credits.take(0)


def test_nothing_is_started_on_an_event_loop_that_is_closed():
    thread = EventLoopThread("test")
    assert thread.start(asyncio.sleep(0, 7)).result() == 7
    thread.close()
    with pytest.raises(CancelledError):
        thread.start(asyncio.sleep(0))
    thread.close()  # again, as by a second `stop`
