"""A replica behind its queue: what is answered together, what it reports, and what it writes."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybrew.data.encoding import EncodedView
from raybrew.data.payload import Signal
from raybrew.errors import LabelError
from raybrew.labels.store import LabelStore
from raybrew.teachers import host as host_module
from raybrew.teachers.host import DynamicBatcher, ReplicaHost, fullest
from tests.teachers.test_replica import SIGNALS, SPEC, VIEW, Counting


def host_of(folder: Path) -> ReplicaHost:
    host = ReplicaHost(SPEC, SIGNALS, str(folder))
    host._replica._teacher = Counting()
    return host


async def looks_until(host: ReplicaHost, condition: Callable[[dict[str, Any]], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition(await host.health()):
            await asyncio.sleep(0.01)


def test_what_it_computed_is_reported_and_written_though_no_request_follows(tmp_path, monkeypatch):
    async def story() -> None:
        host = host_of(tmp_path)
        assert (await host.health())["unwritten_s"] == 0.0
        await host.ask(VIEW, SIGNALS)
        await looks_until(host, lambda health: health["num_waiting"] == 0)
        health = await host.health()
        assert health["examples"] == len(VIEW)
        assert health["unwritten_s"] > 0.0
        assert not LabelStore(str(tmp_path)).signal("f1", SIGNALS[0]).contains(VIEW.keys).any()
        await asyncio.sleep(0.01)
        assert (await host.health())["unwritten_s"] > health["unwritten_s"]
        monkeypatch.setattr("raybrew.teachers.replica.FLUSH_S", 0.0)
        await looks_until(host, lambda health: health["unwritten_s"] == 0.0)
        assert LabelStore(str(tmp_path)).signal("f1", SIGNALS[0]).contains(VIEW.keys).all()
        assert (await host.health())["life"] == health["life"]
        assert (await host_of(tmp_path).health())["life"] != health["life"]

    asyncio.run(story())


def test_what_cannot_be_written_is_logged_once_in_a_while(tmp_path, monkeypatch, caplog):
    async def story() -> None:
        host, tries = host_of(tmp_path), []

        def full() -> None:
            tries.append(1)
            raise LabelError("no room")

        monkeypatch.setattr("raybrew.teachers.replica.FLUSH_S", 0.0)
        monkeypatch.setattr(host._replica, "flush", full)
        await host.ask(VIEW, SIGNALS)
        await looks_until(host, lambda _: "no room" in caplog.text)
        for _ in range(20):
            await host.health()
            await asyncio.sleep(0.01)
        assert len(tries) == 1
        monkeypatch.setattr(host, "_no_flush_until_s", 0.0)
        await looks_until(host, lambda _: len(tries) == 2)
        # The next request ends in it.
        with pytest.raises(LabelError, match="no room"):
            await host.ask(VIEW, SIGNALS)

    with caplog.at_level(logging.WARNING, host_module.__name__):
        asyncio.run(story())


FULL, HALF = (Signal(),), (Signal(dtype="float16"),)


def one(row: int) -> EncodedView:
    return VIEW.take(np.array([row]))


class Slow:
    """Waits until it is let go; remembers what it was given at once."""

    def __init__(self):
        self.batches: list[int] = []
        self.go = threading.Event()

    def __call__(self, views, signals):
        self.batches.append(len(views))
        self.go.wait(10)
        return [(view.keys.tolist(), signals) for view in views]


@pytest.fixture
def slow():
    return Slow()


@pytest.fixture
def batcher(slow):
    yield DynamicBatcher(slow, tokens=40, wait_s=0.05)
    slow.go.set()


def test_questions_of_several_callers_share_a_batch_up_to_the_budget(batcher, slow):
    first = batcher.ask(one(0), FULL)
    time.sleep(0.2)
    rest = [batcher.ask(one(row), FULL) for row in range(1, 12)]
    assert batcher.queue_age_s() >= 0.0
    slow.go.set()
    answers = [future.result(10) for future in [first, *rest]]
    assert [answer[0] for answer in answers] == [one(row).keys.tolist() for row in range(12)]
    assert slow.batches[0] == 1
    assert sum(slow.batches) == 12
    # Tokens stop a batch, and the last question may be beyond them.
    assert 3 <= len(slow.batches) < 8
    lengths = VIEW.lengths[1:].tolist()
    for size in slow.batches[1:]:
        taken, lengths = lengths[:size], lengths[size:]
        assert sum(taken[:-1]) < 40


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        ([16, 16, 16], 3),
        ([16, 16, 3], 2),  # 35 of 48 are less full than 32 of 32
        ([10, 5, 9, 9], 2),  # 15 of 16, 24 of 32, 33 of 48
        ([40], 1),
        ([0, 0], 2),
    ],
)
def test_questions_that_fill_their_forwards_go_together(tokens, kept):
    assert fullest(tokens, 16) == kept


def test_what_would_leave_a_forward_half_empty_waits_for_the_next_batch(slow):
    lengths = VIEW.lengths[[1, 2, 3]].tolist()
    batcher = DynamicBatcher(
        slow, tokens=sum(lengths), wait_s=0.05, forward_tokens=sum(lengths[:2])
    )
    try:
        first = batcher.ask(one(0), FULL)
        time.sleep(0.2)
        rest = [batcher.ask(one(row), FULL) for row in (1, 2, 3)]
        slow.go.set()
        answers = [future.result(10)[0] for future in [first, *rest]]
    finally:
        slow.go.set()
    assert answers == [one(row).keys.tolist() for row in range(4)]
    assert slow.batches == [1, 2, 1]


def test_a_lone_question_is_not_kept_waiting(batcher, slow):
    slow.go.set()
    start = time.monotonic()
    batcher.ask(one(0), FULL).result(10)
    assert time.monotonic() - start < 1.0


def test_questions_about_other_signals_are_not_mixed(batcher, slow):
    futures = [batcher.ask(one(row), HALF if row % 2 else FULL) for row in range(4)]
    slow.go.set()
    assert [future.result(10)[1] for future in futures] == [FULL, HALF, FULL, HALF]
    assert slow.batches == [1] * 4


def test_an_urgent_job_goes_before_what_waits_and_the_age_is_that_of_the_oldest(batcher, slow):
    done: list[str] = []
    first = batcher.ask(one(0), FULL)
    time.sleep(0.2)
    later = batcher.run(lambda: done.append("later"))
    urgent = batcher.run(lambda: done.append("urgent"), first=True)
    assert 0.0 < batcher.queue_age_s() < 5.0
    assert batcher.num_waiting() == 3
    slow.go.set()
    for future in (first, later, urgent):
        future.result(10)
    assert done == ["urgent", "later"]
    assert batcher.queue_age_s() == 0.0
    assert batcher.run(batcher.num_waiting).result(10) == 1


def test_the_thread_outlives_errors_and_cancelled_questions(batcher, slow):
    def fail() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        batcher.run(fail).result(10)
    held = batcher.ask(one(0), FULL)
    time.sleep(0.2)
    cancelled = batcher.ask(one(1), FULL)
    assert cancelled.cancel()
    assert not held.cancel()
    slow.go.set()
    assert held.result(10)
    assert batcher.ask(one(2), FULL).result(10)


def test_one_that_stands_alone_is_answered_with_no_other(slow):
    batcher = DynamicBatcher(slow, tokens=1000, wait_s=0.0)
    held = batcher.ask(one(0), FULL)
    time.sleep(0.2)
    waiting = [batcher.ask(one(n), FULL, alone=n == 3) for n in range(1, 6)]
    slow.go.set()
    for future in (held, *waiting):
        assert future.result(10)
    assert slow.batches == [1, 2, 1, 2]
