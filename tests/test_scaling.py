"""The simulation behind cluster/SCALING.md does what a run would, and stores are measured."""

import pytest

from experiments.scaling.costs import CallCosts
from experiments.scaling.simulation import Setting, simulated
from experiments.scaling.store import measured_store

FREE = CallCosts(0.0, 0.0, 0.0, 0.0)
CALLS = CallCosts(question_s=1e-3, ticket_s=5e-5, finished_s=1e-3, round_trip_s=1e-3)


def test_ranks_that_never_wait_reach_the_ideal():
    outcome = simulated(Setting(4, 4, FREE))
    assert outcome.share == pytest.approx(1.0, abs=1e-6)
    # What the replicas do is what the ranks ask for: 4 × 32 × 32 tokens each 0.1 s, of 12,800/s.
    assert 0.6 < outcome.replicas_busy < 0.9
    assert simulated(Setting(4, 4, FREE)) == outcome


def test_too_few_replicas_are_the_bound():
    outcome = simulated(Setting(4, 1, FREE, forward_s=0.0, num_windows=20))
    assert outcome.replicas_busy > 0.97
    # 12,800 tokens a second are 400 examples.
    assert outcome.examples_per_s == pytest.approx(400, rel=0.1)


def test_requests_of_a_few_examples_overrun_the_desk_and_larger_ones_do_not():
    small = simulated(Setting(32, 32, CALLS, batch_tokens=128))
    assert small.desk_busy > 0.9
    assert small.share < 0.9
    larger = simulated(Setting(32, 32, CALLS))
    assert larger.share > 0.99
    assert larger.desk_busy < 0.5
    assert larger.rows_per_ticket > 2 * small.rows_per_ticket


def test_a_store_is_measured():
    figures = measured_store(60_000)
    assert figures.keys == 60_000
    # A key is 16 bytes, two logits are 8.
    assert 24 <= figures.disk_bytes < 26
    assert 0 < figures.open_s < 20
    assert 0 < figures.memory_bytes < 200
    assert 0 < figures.batch_us < 1e5
