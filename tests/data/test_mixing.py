"""Which task comes up when: shares by hand, frequencies, purity, mistakes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raybrew.config import MixingConfig
from raybrew.data.mixing import RandomDraws, proportional, t5_shares, task_draws
from raybrew.data.sampler import BatchSequence
from raybrew.errors import ConfigError

SIZES = [900, 100]
NAMES = ["large", "small"]


def draws_of(mixing: MixingConfig, num_epochs: float = 1.0, per_epoch: int = 1000, seed: int = 0):
    return task_draws(
        mixing, NAMES, SIZES, seed, batches_per_epoch=per_epoch, num_epochs=num_epochs
    )


def frequency(draws, numbers: range) -> float:
    return float(np.mean([draws.place(number)[0] for number in numbers]))


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
    found = frequency(draws_of(mixing), range(6000))
    # Five standard errors of a share drawn 6,000 times.
    assert abs(found - share_of_small) < 5 * np.sqrt(0.25 / 6000)


def test_annealing_goes_from_tau_to_tau_end_over_the_epochs():
    mixing = MixingConfig(sampling="annealed", tau=1.0, tau_end=0.0)
    draws = draws_of(mixing, num_epochs=3, per_epoch=4000)
    # τ = 1, ½ and 0: shares of the small task 0.1, 0.25 and 0.5.
    for epoch, share in enumerate((0.1, 0.25, 0.5)):
        found = frequency(draws, range(4000 * epoch, 4000 * (epoch + 1)))
        assert abs(found - share) < 5 * np.sqrt(0.25 / 4000), epoch


def test_every_takes_each_task_once_a_step():
    mixing = MixingConfig(sampling="every")
    sequence = BatchSequence(SIZES, [30, 10], 0, draws_of(mixing), batches_per_step=2)
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
        draws = draws_of(mixing, num_epochs=30, per_epoch=100, seed=seed)
        return BatchSequence(SIZES, 7, seed, draws, 2)

    through, jumping = sequence(), sequence()
    run = [through.batch(number) for number in range(2501)]
    for number in numbers:
        task, rows = jumping.batch(number)
        assert task == run[number][0]
        assert rows.tolist() == run[number][1].tolist()


def test_each_task_goes_through_its_own_epochs_whatever_the_draws():
    draws = RandomDraws(2, 1, lambda epoch: np.array([0.2, 0.8]), 10)
    sequence = BatchSequence([20, 12], [5, 4], 1, draws, 3)
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
    with pytest.raises(ValidationError, match=message):
        MixingConfig(**values)


@pytest.mark.parametrize("probabilities", [{"large": 1.0}, {"large": 1, "small": 1, "other": 1}])
def test_probabilities_of_other_tasks_are_refused(probabilities):
    mixing = MixingConfig(sampling="fixed", probabilities=probabilities)
    with pytest.raises(ConfigError, match=r"one for each task \(large, small\)"):
        draws_of(mixing)
    with pytest.raises(ConfigError, match="sum above 0"):
        draws_of(MixingConfig(sampling="fixed", probabilities={"large": 0, "small": 0}))


def test_a_task_that_never_comes_up_leaves_the_others_their_rows():
    # Its draws are counted in blocks of 1,024; in none of them does the second task come up.
    mixing = MixingConfig(sampling="fixed", probabilities={"large": 1, "small": 0})
    draws = draws_of(mixing)
    assert [draws.place(number) for number in (0, 1023, 1024, 5000)] == [
        (0, 0),
        (0, 1023),
        (0, 1024),
        (0, 5000),
    ]
