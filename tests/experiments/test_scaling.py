"""The simulation behind cluster/SCALING.md does what a run would, and stores are measured."""

import pytest

from experiments.scaling.simulation import CallCosts, Setting, simulated
from experiments.scaling.store import measured_store

FREE = CallCosts(0.0, 0.0, 0.0, 0.0)
CALLS = CallCosts(question_s=1e-3, request_s=5e-5, finished_s=1e-3, round_trip_s=1e-3)


def test_ranks_that_never_wait_reach_the_ideal():
    outcome = simulated(Setting(4, 4, FREE, forward_s=0.0))
    # 4 ranks take a step of 32 rows in 0.1 s.
    assert outcome.ideal_per_s == pytest.approx(1280)
    assert outcome.examples_per_s == pytest.approx(1280, abs=1e-6)
    # A window of 8 steps is 32,768 tokens, 0.64 s of each replica, and the student takes 0.8 s for
    # it; 12 windows after the first one, whose labels are there within 0.64 to 1.28 s.
    assert 12 * 0.64 / (12 * 0.8 + 1.28) <= outcome.replicas_busy <= 12 * 0.64 / (12 * 0.8 + 0.64)
    assert simulated(Setting(4, 4, FREE, forward_s=0.0)) == outcome


@pytest.mark.parametrize(
    ("tokens_per_s", "share"), [(20_480, 1.0), (10_752, 1.0), (9_216, 0.9), (5_120, 0.5)]
)
def test_the_share_of_the_ideal_is_that_of_the_tokens_that_replicas_can_answer(tokens_per_s, share):
    # Ranks that never wait read 1,280 rows of 32 tokens a second: 10,240 of each of 4 replicas.
    setting = Setting(4, 4, FREE, forward_s=0.0, tokens_per_s=tokens_per_s, num_windows=40)
    assert simulated(setting).share == pytest.approx(share, rel=0.02)


def test_too_few_replicas_are_the_bound():
    outcome = simulated(Setting(4, 1, FREE, forward_s=0.0, num_windows=20))
    assert outcome.replicas_busy > 0.97
    # 12,800 tokens a second are 400 examples.
    assert outcome.examples_per_s == pytest.approx(400, rel=0.1)


def test_requests_of_a_few_examples_overrun_the_router_and_larger_ones_do_not():
    small = simulated(Setting(32, 32, CALLS, batch_tokens=128))
    assert small.router_busy > 0.9
    assert small.share < 0.9
    larger = simulated(Setting(32, 32, CALLS))
    assert larger.share > 0.99
    assert larger.router_busy < 0.5
    assert larger.rows_per_request > 2 * small.rows_per_request


@pytest.mark.long
def test_a_store_is_measured():
    figures = measured_store(60_000)
    assert figures.keys == 60_000
    # A key is 16 bytes, two logits are 8.
    assert 24 <= figures.disk_bytes < 26
    assert 0 < figures.open_s < 20
    assert 0 < figures.memory_bytes < 200
    assert 0 < figures.batch_us < 1e5
