"""One compute thread: what comes together is answered together, and nothing is lost."""

import threading
import time

import numpy as np
import pytest

from raybrew.data.encoding import EncodedView, encode
from raybrew.data.payload import Signal
from raybrew.teachers.batcher import DynamicBatcher, fullest
from raybrew.teachers.client import Credits
from raybrew.teachers.failure import FailureDecision, FailurePolicy
from tests.made import make_data, make_tokenizer

VIEW = encode(make_tokenizer(), make_data(12)["text"][:], None, 32)[0]
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
def gatherer(slow):
    gatherer = DynamicBatcher(slow, tokens=40, wait_s=0.05)
    yield gatherer
    slow.go.set()
    gatherer.close()


def test_questions_of_several_callers_share_a_batch_up_to_the_budget(gatherer, slow):
    first = gatherer.ask(one(0), FULL)
    time.sleep(0.2)
    rest = [gatherer.ask(one(row), FULL) for row in range(1, 12)]
    assert gatherer.queue_age_s() >= 0.0
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
    gatherer = DynamicBatcher(
        slow, tokens=sum(lengths), wait_s=0.05, forward_tokens=sum(lengths[:2])
    )
    try:
        first = gatherer.ask(one(0), FULL)
        time.sleep(0.2)
        rest = [gatherer.ask(one(row), FULL) for row in (1, 2, 3)]
        slow.go.set()
        answers = [future.result(10)[0] for future in [first, *rest]]
    finally:
        slow.go.set()
        gatherer.close()
    assert answers == [one(row).keys.tolist() for row in range(4)]
    assert slow.batches == [1, 2, 1]


def test_a_lone_question_is_not_kept_waiting(gatherer, slow):
    slow.go.set()
    start = time.monotonic()
    gatherer.ask(one(0), FULL).result(10)
    assert time.monotonic() - start < 1.0


def test_questions_about_other_signals_are_not_mixed(gatherer, slow):
    futures = [gatherer.ask(one(row), HALF if row % 2 else FULL) for row in range(4)]
    slow.go.set()
    assert [future.result(10)[1] for future in futures] == [FULL, HALF, FULL, HALF]
    assert slow.batches == [1] * 4


def test_an_urgent_job_goes_before_what_waits_and_the_age_is_that_of_the_oldest(gatherer, slow):
    done: list[str] = []
    first = gatherer.ask(one(0), FULL)
    time.sleep(0.2)
    later = gatherer.run(lambda: done.append("later"))
    urgent = gatherer.run(lambda: done.append("urgent"), first=True)
    assert 0.0 < gatherer.queue_age_s() < 5.0
    assert gatherer.waiting() == 3
    slow.go.set()
    for future in (first, later, urgent):
        future.result(10)
    assert done == ["urgent", "later"]
    assert gatherer.queue_age_s() == 0.0
    assert gatherer.run(gatherer.waiting).result(10) == 1


def test_the_thread_outlives_errors_and_cancelled_questions(gatherer, slow):
    def fail() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        gatherer.run(fail).result(10)
    held = gatherer.ask(one(0), FULL)
    time.sleep(0.2)
    cancelled = gatherer.ask(one(1), FULL)
    assert cancelled.cancel()
    assert not held.cancel()
    slow.go.set()
    assert held.result(10)
    assert gatherer.ask(one(2), FULL).result(10)


def test_one_that_stands_alone_is_answered_with_no_other(slow):
    gatherer = DynamicBatcher(slow, tokens=1000, wait_s=0.0)
    held = gatherer.ask(one(0), FULL)
    time.sleep(0.2)
    waiting = [gatherer.ask(one(n), FULL, alone=n == 3) for n in range(1, 6)]
    slow.go.set()
    for future in (held, *waiting):
        assert future.result(10)
    assert slow.batches == [1, 2, 1, 2]
    gatherer.close()


def test_what_waits_when_it_is_closed_is_cancelled(slow):
    gatherer = DynamicBatcher(slow, tokens=1, wait_s=0.0)
    held, waiting = gatherer.ask(one(0), FULL), gatherer.ask(one(1), FULL)
    time.sleep(0.2)
    slow.go.set()
    gatherer.close()
    assert held.result(10)
    assert waiting.cancelled() or waiting.result(10)
    assert gatherer.ask(one(2), FULL).cancelled()


def test_credits_bound_requests_and_bytes():
    credits = Credits(max_requests=3, max_bytes=100)
    assert credits.take(1000)  # alone, even the large one
    assert not credits.take(1)
    credits.give_back(1000)
    assert [credits.take(40) for _ in range(3)] == [True, True, False]
    assert credits.take(0)
    assert not credits.take(0)


def test_what_is_decided_about_a_teacher_without_replicas():
    fail, wait = FailurePolicy("fail", 5, 60), FailurePolicy("wait", 5, 60)
    drop = FailurePolicy("drop", 5, 60)
    assert {p.verdict(59, gone=False) for p in (fail, wait, drop)} == {FailureDecision.WAIT}
    late = [p.verdict(61, gone=False) for p in (fail, wait, drop)]
    assert late == [FailureDecision.FAIL, FailureDecision.WAIT, FailureDecision.DROP]
    gone = [p.verdict(0, gone=True) for p in (fail, wait, drop)]
    assert gone == [FailureDecision.FAIL, FailureDecision.FAIL, FailureDecision.DROP]
    assert fail.hangs(5.1)
    assert not fail.hangs(4.9)
    assert fail.is_unresponsive(36)
    assert not fail.is_unresponsive(34)
    assert [fail.gives_up(losses) for losses in (3, 4)] == [False, True]
    assert not wait.gives_up(1000)
