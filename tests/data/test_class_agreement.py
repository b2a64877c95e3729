"""When predictions fit labels far better in another order of the classes, and when that is luck."""

import numpy as np
import pytest

from raybrew.data.class_agreement import MIN_ROWS, better_order, order_problem


def flags(numbers: np.ndarray, classes: int) -> np.ndarray:
    return numbers[:, None] == np.arange(classes)


def noisy(true: np.ndarray, right: float, classes: int, rng: np.random.Generator) -> np.ndarray:
    guess = rng.integers(0, classes, len(true))
    return np.where(rng.random(len(true)) < right, true, guess)


@pytest.mark.parametrize("shares", [None, [0.9, 0.04, 0.04, 0.02]])
@pytest.mark.parametrize("right", [1.0, 0.6])
def test_another_order_is_found(shares, right):
    rng = np.random.default_rng(0)
    order = np.array([2, 0, 3, 1])  # the model's number of each class
    true = rng.choice(4, 600, p=shares)
    found = better_order(flags(true, 4), flags(order[noisy(true, right, 4, rng)], 4))
    assert found is not None
    assert found.order == tuple(order)
    assert found.num_rows == 600
    assert found.accuracy_in_order > max(0.6, found.accuracy)


def test_another_order_of_sets_is_found():
    rng = np.random.default_rng(0)
    true = rng.random((300, 3)) < [0.5, 0.3, 0.2]
    wrong = rng.random((300, 3)) < 0.1
    found = better_order(true, (true ^ wrong)[:, [1, 2, 0]])
    assert found is not None
    assert found.order == (2, 0, 1)
    assert better_order(true, true ^ wrong) is None


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("classes", [2, 5, 40])
def test_what_guesses_has_no_better_order(seed, classes):
    rng = np.random.default_rng(seed)
    true, guessed = rng.integers(0, classes, (2, 300))
    assert better_order(flags(true, classes), flags(guessed, classes)) is None


@pytest.mark.parametrize("seed", range(5))
def test_what_is_weak_or_always_the_same_has_none(seed):
    rng = np.random.default_rng(seed)
    true = rng.choice(3, 300, p=[0.8, 0.1, 0.1])
    weak = noisy(true, 0.2, 3, rng)
    assert better_order(flags(true, 3), flags(weak, 3)) is None
    # The rarest class for all rows: the commonest in its place would be right for 80 %.
    assert better_order(flags(true, 3), flags(np.full(300, 2), 3)) is None


def test_few_rows_tell_nothing():
    true = np.arange(MIN_ROWS) % 2
    assert better_order(flags(true, 2), flags(1 - true, 2)) is not None
    assert better_order(flags(true[1:], 2), flags(1 - true[1:], 2)) is None
    assert better_order(np.empty((0, 2), bool), np.empty((0, 2), bool)) is None


def test_classes_that_no_row_has_stay_where_they_are():
    true = np.arange(100) % 2
    found = better_order(flags(true, 4), flags(1 - true, 4))
    assert found is not None
    assert found.order == (1, 0, 2, 3)


def test_rows_sorted_by_class_tell_as_much():
    true = np.sort(np.arange(200) % 4)
    found = better_order(flags(true, 4), flags(3 - true, 4))
    assert found is not None
    assert found.order == (3, 2, 1, 0)


def test_the_message_shows_the_order_as_label_names():
    true = np.arange(90) % 3
    both = flags(true, 3), flags((true + 1) % 3, 3)
    message = order_problem(both, "teachers[a].model", ("x", "y", "z"), task="t", side="eval")
    # The model's class 0 is said for z, 1 for x, 2 for y.
    assert message is not None
    assert "teachers[a].model: no names say" in message
    assert "0.0% are right for 90 labels of tasks[t].eval, and 100.0% in another" in message
    # In quotes: in YAML names such as 1 are no texts.
    assert 'set tasks[t].label_names: ["z", "x", "y"],' in message
    right = (both[0], both[0])
    assert order_problem(right, "m", ("x", "y", "z"), task="t", side="eval") is None
