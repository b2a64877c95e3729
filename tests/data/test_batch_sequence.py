from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrew.config import MixingConfig
from raybrew.data.batch_sequence import (
    BatchSequence,
    RandomSchedule,
    TaskExamples,
    epoch_order,
    micro_batches,
    proportional,
    rank_rows,
    t5_shares,
    task_schedule,
)
from raybrew.errors import ConfigError

# Which task comes up when: shares by hand, frequencies, purity, mistakes.

SIZES = [900, 100]
NAMES = ["large", "small"]


def sequence_of(
    sizes: list[int], batch_sizes: int | list[int], seed: int, *rest: Any, lengths: Any = None
) -> BatchSequence:
    if isinstance(batch_sizes, int):
        batch_sizes = [batch_sizes] * len(sizes)
    lengths = lengths or [None] * len(sizes)
    tasks = [
        TaskExamples(size, batch, lengths=each)
        for size, batch, each in zip(sizes, batch_sizes, lengths, strict=True)
    ]
    return BatchSequence(tasks, seed, *rest)


def schedule_of(
    mixing: MixingConfig, num_epochs: float = 1.0, per_epoch: int = 1000, seed: int = 0
):
    return task_schedule(
        mixing, NAMES, SIZES, seed, batches_per_epoch=per_epoch, num_epochs=num_epochs
    )


def frequency(schedule, numbers: range) -> float:
    return float(np.mean([schedule.place(number)[0] for number in numbers]))


def test_shares_by_hand():
    np.testing.assert_allclose(proportional([100, 25], tau=0.5), [2 / 3, 1 / 3])
    # min(900, 400)^½ = 20 and 100^½ = 10.
    np.testing.assert_allclose(t5_shares(SIZES, 400, 2.0), [2 / 3, 1 / 3])
    np.testing.assert_allclose(t5_shares(SIZES, 50, 1.0), [0.5, 0.5])


@pytest.mark.parametrize(
    ("mixing", "share_of_small"),
    [
        (MixingConfig(), 0.1),
        (MixingConfig(tau=0.5), 0.25),
        (MixingConfig(sampling="t5", limit=400, temperature=2), 1 / 3),
        (MixingConfig(sampling="fixed", probabilities={"small": 3, "large": 1}), 0.75),
        (MixingConfig(sampling="every"), 0.5),
    ],
)
def test_tasks_come_up_by_their_shares(mixing, share_of_small):
    found = frequency(schedule_of(mixing), range(6000))
    # Five standard errors of a share drawn 6,000 times.
    assert abs(found - share_of_small) < 5 * np.sqrt(0.25 / 6000)


def test_annealing_goes_from_tau_to_tau_end_over_the_epochs():
    mixing = MixingConfig(sampling="annealed", tau=1.0, tau_end=0.0)
    schedule = schedule_of(mixing, num_epochs=3, per_epoch=4000)
    # τ = 1, ½ and 0: shares of the small task 0.1, 0.25 and 0.5.
    for epoch, share in enumerate((0.1, 0.25, 0.5)):
        found = frequency(schedule, range(4000 * epoch, 4000 * (epoch + 1)))
        assert abs(found - share) < 5 * np.sqrt(0.25 / 4000), epoch


def test_every_takes_each_task_once_a_step():
    mixing = MixingConfig(sampling="every")
    sequence = sequence_of(SIZES, [30, 10], 0, schedule_of(mixing), 2)
    # 30 batches of the large task and 10 of the small one: 40 batches, two a step.
    assert sequence.steps_per_epoch == 20
    for step in range(40):
        batches = [sequence.batch(number) for number in sequence.numbers(step)]
        assert [task for task, _ in batches] == [0, 1]
        assert [len(rows) for _, rows in batches] == [30, 10]


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(["proportional", "t5", "annealed", "every"]),
    st.integers(0, 9),
    st.lists(st.integers(0, 2500), min_size=1, max_size=5),
)
def test_a_batch_is_a_function_of_seed_and_number_alone(sampling, seed, numbers):
    mixing = MixingConfig(sampling=sampling, tau=0.7)

    def sequence() -> BatchSequence:
        schedule = schedule_of(mixing, num_epochs=30, per_epoch=100, seed=seed)
        return sequence_of(SIZES, 7, seed, schedule, 2)

    through, jumping = sequence(), sequence()
    run = [through.batch(number) for number in range(2501)]
    for number in numbers:
        task, rows = jumping.batch(number)
        assert task == run[number][0]
        assert rows.tolist() == run[number][1].tolist()


def test_each_task_goes_through_its_own_epochs_whatever_the_draws():
    schedule = RandomSchedule(2, 1, lambda epoch: np.array([0.2, 0.8]), 10)
    sequence = sequence_of([20, 12], [5, 4], 1, schedule, 3)
    seen: list[list[int]] = [[], []]
    for step in range(60):
        for number in sequence.numbers(step):
            task, rows = sequence.batch(number)
            seen[task] += rows.tolist()
    for task, size in enumerate((20, 12)):
        assert len(seen[task]) >= 2 * size
        assert sorted(seen[task][:size]) == list(range(size))
        assert sorted(seen[task][size : 2 * size]) == list(range(size))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampling": "fixed"}, "expected `probabilities` with sampling `fixed`"),
        ({"probabilities": {"a": 1}}, "expected `probabilities` with sampling `fixed`"),
        ({"sampling": "every", "batches_per_step": 2}, "expected batches_per_step left out"),
        ({"sampling": "fixed", "probabilities": {"a": -1}}, "greater than or equal to 0"),
        ({"tau": -0.1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_cant_be_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        MixingConfig(**values)


@pytest.mark.parametrize("probabilities", [{"large": 1.0}, {"large": 1, "small": 1, "other": 1}])
def test_probabilities_of_other_tasks_are_refused(probabilities):
    mixing = MixingConfig(sampling="fixed", probabilities=probabilities)
    with pytest.raises(ConfigError, match=r"one for each task \(large, small\)"):
        schedule_of(mixing)
    with pytest.raises(ConfigError, match="sum above 0"):
        schedule_of(MixingConfig(sampling="fixed", probabilities={"large": 0, "small": 0}))


def test_a_task_that_never_comes_up_leaves_the_others_their_rows():
    # Batches are counted in blocks of 1,024; in none of them does the second task come up.
    mixing = MixingConfig(sampling="fixed", probabilities={"large": 1, "small": 0})
    schedule = schedule_of(mixing)
    assert [schedule.place(number) for number in (0, 1023, 1024, 5000)] == [
        (0, 0),
        (0, 1023),
        (0, 1024),
        (0, 5000),
    ]


SHARES = np.array([0.75, 0.25])


@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 9), st.integers(0, 3))
def test_an_epoch_has_each_row_once(size, batch_size, seed, epoch):
    sequence = sequence_of([size], batch_size, seed)
    steps = sequence.steps_per_epoch
    rows = [sequence.batch(epoch * steps + step)[1] for step in range(steps)]
    assert sorted(np.concatenate(rows)) == list(range(size))
    assert all(len(batch) == batch_size for batch in rows[:-1])


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=3), st.integers(0, 9), st.data())
def test_a_step_is_a_function_of_seed_and_step_alone(sizes, seed, data):
    through = sequence_of(sizes, 4, seed)
    run = [through.batch(step) for step in range(60)]
    jumps = data.draw(st.lists(st.integers(0, 59), min_size=1, max_size=6))
    jumping = sequence_of(sizes, 4, seed)
    for step in jumps:
        task, rows = jumping.batch(step)
        assert task == run[step][0]
        assert rows.tolist() == run[step][1].tolist()


def test_other_seeds_and_epochs_give_other_orders():
    one, two = sequence_of([40], 40, 1), sequence_of([40], 40, 2)
    orders = [one.batch(0)[1], one.batch(1)[1], two.batch(0)[1]]
    assert len({tuple(order) for order in orders}) == 3


def test_tasks_come_up_as_often_as_their_probabilities_say_and_in_their_own_epochs():
    sequence = sequence_of([30, 10], 5, 0, RandomSchedule(2, 0, lambda epoch: SHARES, 8))
    seen: dict[int, list[int]] = {0: [], 1: []}
    for step in range(3000):
        task, rows = sequence.batch(step)
        seen[task] += rows.tolist()
    share = len(seen[0]) / (len(seen[0]) + len(seen[1]))
    assert abs(share - 0.75) < 0.03
    for task, size in ((0, 30), (1, 10)):
        assert sorted(seen[task][:size]) == list(range(size))
        assert sorted(seen[task][size : 2 * size]) == list(range(size))


@given(st.integers(0, 40), st.integers(1, 7))
def test_ranks_and_micro_batches_take_each_row_once(count, parts):
    rows = np.arange(count)
    ranks = [rank_rows(rows, rank, parts) for rank in range(parts)]
    for split in (ranks, micro_batches(rows, parts)):
        assert sorted(np.concatenate(split).tolist()) == list(range(count))
        sizes = [len(part) for part in split]
        assert max(sizes) - min(sizes) <= 1


def test_proportional_by_hand():
    np.testing.assert_allclose(proportional([100, 25]), [0.8, 0.2])
    np.testing.assert_allclose(proportional([100, 25], tau=0.5), [2 / 3, 1 / 3])
    np.testing.assert_allclose(proportional([100, 25], tau=0.0), [0.5, 0.5])


@pytest.mark.parametrize(("sizes", "batch"), [([0], 4), ([5], 0), ([5, 0], 4), ([], 4)])
def test_what_cant_be_is_refused(sizes, batch):
    with pytest.raises(ConfigError, match="expected"):
        sequence_of(sizes, batch, 0)


def drawn_lengths(size: int) -> np.ndarray:
    return np.random.default_rng(5).integers(3, 60, size)


@given(st.integers(1, 300), st.integers(1, 16), st.integers(0, 3))
def test_grouping_by_length_leaves_no_row_out_and_none_twice(size, batch_size, epoch):
    lengths = drawn_lengths(size)
    sequence = sequence_of([size], batch_size, 7, lengths=[lengths])
    first = epoch * sequence.steps_per_epoch
    batches = [sequence.batch(first + n)[1] for n in range(sequence.steps_per_epoch)]
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(size))


def test_grouped_batches_are_padded_less_and_come_in_an_order_that_is_drawn():
    size, batch_size = 2000, 16
    lengths = drawn_lengths(size)

    def padding(sequence: BatchSequence) -> float:
        batches = [sequence.batch(n)[1] for n in range(sequence.steps_per_epoch)]
        return sum(len(b) * int(lengths[b].max()) for b in batches) / lengths.sum() - 1

    grouped = sequence_of([size], batch_size, 7, lengths=[lengths])
    assert padding(sequence_of([size], batch_size, 7)) > 0.7
    assert padding(grouped) < 0.05
    longest = [lengths[grouped.batch(n)[1]].max() for n in range(grouped.steps_per_epoch)]
    rises = np.mean(np.diff(longest) > 0)
    assert 0.3 < rises < 0.7, "batches are not sorted among themselves"


def test_grouped_batches_are_a_function_of_seed_and_step_alone():
    lengths = [drawn_lengths(50), drawn_lengths(33)]
    one = sequence_of([50, 33], 8, 3, lengths=lengths)
    other = sequence_of([50, 33], 8, 3, lengths=lengths)
    later = sequence_of([50, 33], 8, 4, lengths=lengths)
    in_order = [one.batch(step) for step in range(40)]
    backwards = [other.batch(step) for step in reversed(range(40))][::-1]
    for (task, rows), (same_task, same) in zip(in_order, backwards, strict=True):
        assert task == same_task
        np.testing.assert_array_equal(rows, same)
    assert any(
        len(rows) != len(moved) or (rows != moved).any()
        for (_, rows), (_, moved) in zip(in_order, map(later.batch, range(40)), strict=True)
    )


PLAIN = [
    (1, [0, 4]),
    (0, [3, 1, 4]),
    (1, [3, 1]),
    (0, [5, 2, 0]),
    (1, [2]),
    (0, [6]),
    (0, [5, 4, 1]),
    (1, [0, 3]),
]
GROUPED = [[8, 6], [4, 2], [1, 3], [5, 7], [0, 9], [5, 7]]


def test_the_order_of_a_seed_stays_what_it_was():
    # A run that is resumed, and a sweep that goes on, count on it from one version to the next.
    plain = sequence_of([7, 5], [3, 2], 11)
    assert [(task, rows.tolist()) for task, rows in map(plain.batch, range(8))] == PLAIN
    lengths = [np.array([9, 1, 8, 2, 7, 3, 6, 4, 5, 10])]
    grouped = sequence_of([10], 2, 11, lengths=lengths)
    assert [rows.tolist() for _, rows in map(grouped.batch, range(6))] == GROUPED


@pytest.mark.parametrize("batch_size", [2, 4, 7])
def test_grouped_batches_are_cut_from_pools_of_32_that_are_sorted(batch_size):
    size = 700
    # Few lengths, so that many rows tie: they stay in the order in which they were drawn.
    lengths = np.random.default_rng(3).integers(1, 6, size)
    drawn = epoch_order(5, 0, 2, size, batch_size=batch_size, lengths=None).tolist()
    grouped = epoch_order(5, 0, 2, size, batch_size=batch_size, lengths=lengths).tolist()
    filled = size // batch_size * batch_size
    expected = []
    for start in range(0, filled, 32 * batch_size):
        pool = sorted(drawn[start : min(start + 32 * batch_size, filled)], key=lengths.__getitem__)
        expected += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    found = [grouped[i : i + batch_size] for i in range(0, filled, batch_size)]
    assert sorted(found) == sorted(expected)
    assert found != expected
    assert grouped[filled:] == drawn[filled:]
