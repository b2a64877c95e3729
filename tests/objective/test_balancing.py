"""Each balancing method against numbers derived by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raybrew.config import MixingConfig
from raybrew.objective.balancing import (
    Balancer,
    DynamicWeightAverage,
    TaskGradients,
    UncertaintyWeights,
    make_balancer,
    pcgrad,
)

SEED = (0, 0)


def test_uncertainty_by_hand():
    balancer = UncertaintyWeights(2)
    with torch.no_grad():
        balancer.log_variances[1] = math.log(4.0)
    loss = torch.tensor(3.0, requires_grad=True)
    # exp(−log 4) · 3 + log 4 / 2 = 0.75 + 0.693…
    value = balancer.weigh(loss, 1, balancer.parameter_of(1), share=1.0)
    assert value.item() == pytest.approx(0.75 + math.log(4.0) / 2)
    value.backward()
    assert loss.grad is not None
    assert loss.grad.item() == pytest.approx(0.25)
    # d/ds: −exp(−s) · L + 1/2 = −0.75 + 0.5; the other task's is untouched.
    gradient = balancer.log_variances.grad
    assert gradient is not None
    assert gradient.tolist() == pytest.approx([0.0, -0.25])


def test_parts_of_a_batch_add_up_to_its_weighed_loss():
    balancer = UncertaintyWeights(1)
    parameter = torch.tensor(0.7)
    whole = balancer.weigh(torch.tensor(2.0), 0, parameter, share=1.0)
    parts = [balancer.weigh(torch.tensor(value), 0, parameter, 0.25) for value in (0.5, 1, 0, 0.5)]
    assert torch.stack(parts).sum().item() == pytest.approx(whole.item())


def test_learnt_variances_go_to_the_logarithm_of_twice_the_loss():
    balancer = UncertaintyWeights(2)
    optimizer = torch.optim.SGD(balancer.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        for task, loss in enumerate((2.0, 0.25)):
            parameter = balancer.parameter_of(task)
            balancer.weigh(torch.tensor(loss), task, parameter, 1.0).backward()
        optimizer.step()
    expected = [math.log(4.0), math.log(0.5)]
    assert balancer.log_variances.tolist() == pytest.approx(expected, abs=1e-3)


def run_epochs(
    balancer: DynamicWeightAverage, epochs: list[tuple[list[float], list[float]]]
) -> None:
    for epoch, losses in enumerate(epochs):
        balancer.start_step(epoch)
        for task, each in enumerate(losses):
            for loss in each:
                balancer.observe(task, torch.tensor(loss))


def test_dynamic_weight_average_by_hand():
    balancer = DynamicWeightAverage(2, temperature=2.0)
    run_epochs(balancer, [([3.0, 1.0], [2.0])])
    # One epoch says nothing of a fall.
    balancer.start_step(1)
    assert balancer.weights().tolist() == [1.0, 1.0]
    balancer.observe(0, torch.tensor(1.0))
    balancer.observe(1, torch.tensor(2.0))
    balancer.start_step(2)
    # Means 2 → 1 and 2 → 2: r = ½ and 1, w = 2 · softmax(¼, ½).
    low, high = math.exp(0.25), math.exp(0.5)
    expected = [2 * low / (low + high), 2 * high / (low + high)]
    assert balancer.weights().tolist() == pytest.approx(expected)
    weighed = balancer.weigh(torch.tensor(10.0), 1, None, 1.0)
    assert weighed.item() == pytest.approx(10 * expected[1])


def test_a_task_that_did_not_come_up_counts_as_standing_still():
    balancer = DynamicWeightAverage(2, temperature=1.0)
    run_epochs(balancer, [([4.0], [2.0]), ([2.0], [])])
    balancer.start_step(2)
    # r = ½ and, for the one without a loss, 1.
    low, high = math.exp(0.5), math.exp(1.0)
    assert balancer.weights()[0].item() == pytest.approx(2 * low / (low + high))


def test_dynamic_weights_come_back_from_their_state():
    balancer = DynamicWeightAverage(2, 2.0)
    run_epochs(balancer, [([3.0], [2.0]), ([1.0], [1.5]), ([0.5], [1.0])])
    again = DynamicWeightAverage(2, 2.0)
    again.load_state_dict(balancer.state_dict())
    for each in (balancer, again):
        each.start_step(3)
    assert torch.equal(balancer.weights(), again.weights())
    assert not torch.equal(balancer.weights(), torch.ones(2).double())


def test_conflicting_gradients_by_hand():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    # g₁·g₂ = −1: g₁' = (1, 0) + ½ (−1, 1) = (½, ½); g₂' = (−1, 1) + (1, 0) = (0, 1).
    assert pcgrad([one, other], SEED).tolist() == [0.5, 1.5]


def test_agreeing_gradients_are_added_up():
    one, other = torch.tensor([1.0, 0.5]), torch.tensor([0.2, 1.0])
    torch.testing.assert_close(pcgrad([one, other], SEED), one + other)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_two_projected_gradients_never_conflict_with_each_other(seed, size):
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, size, generator=generator, dtype=torch.float64)
    mixed = pcgrad([one, other], SEED)
    # Σ g_i' · g_j ≥ 0 for two tasks: no task is set back, to first order.
    assert torch.dot(mixed, one) > -1e-9
    assert torch.dot(mixed, other) > -1e-9


def test_a_zero_gradient_changes_nothing():
    one = torch.tensor([1.0, -2.0])
    assert torch.equal(pcgrad([one, torch.zeros(2)], SEED), one)


def test_only_shared_parameters_are_projected():
    trunk = nn.Parameter(torch.tensor([1.0, 1.0]))
    first, second, unused = (nn.Parameter(torch.ones(1)) for _ in range(3))
    taken = TaskGradients([trunk, first, second, unused], seed=0)
    (trunk * torch.tensor([1.0, 0.0])).sum().mul(first).sum().backward()
    taken.take()
    (trunk * torch.tensor([-1.0, 1.0])).sum().mul(1.0).add(second * 3).sum().backward()
    taken.take()
    assert trunk.grad is None
    taken.put_back(step=0)
    assert trunk.grad is not None
    assert trunk.grad.tolist() == [0.5, 1.5]
    assert first.grad is not None
    assert first.grad.tolist() == [1.0]
    assert second.grad is not None
    assert second.grad.tolist() == [3.0]
    assert unused.grad is None


def test_one_task_is_never_weighed():
    for name in ("uncertainty", "dwa"):
        assert type(make_balancer(MixingConfig(balancing=name), 1)) is Balancer
    assert isinstance(make_balancer(MixingConfig(balancing="dwa"), 2), DynamicWeightAverage)
    assert isinstance(make_balancer(MixingConfig(balancing="uncertainty"), 2), UncertaintyWeights)


def test_uncertainty_starts_with_variances_of_one():
    balancer = UncertaintyWeights(3)
    assert balancer.log_variances.tolist() == [0.0, 0.0, 0.0]
    weighed = balancer.weigh(torch.tensor(3.0), 2, balancer.parameter_of(2), share=1.0)
    assert weighed.item() == 3.0


def test_an_epoch_is_entered_at_each_of_its_steps_and_begins_once():
    balancer = DynamicWeightAverage(2, temperature=2.0)
    # Epochs of two steps; means 2 → 1 and 2 → 2, as by hand above.
    for step, (first, second) in enumerate([(3.0, 2.0), (1.0, 2.0), (1.5, 1.0), (0.5, 3.0)]):
        balancer.start_step(step // 2)
        balancer.observe(0, torch.tensor(first))
        balancer.observe(1, torch.tensor(second))
    balancer.start_step(2)
    low, high = math.exp(0.25), math.exp(0.5)
    expected = [2 * low / (low + high), 2 * high / (low + high)]
    assert balancer.weights().tolist() == pytest.approx(expected)
    balancer.start_step(2)
    assert balancer.weights().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_the_loss_of_a_step_that_is_left_out_is_not_of_its_epoch(loss):
    weights = []
    for extra in ([], [loss]):
        balancer = DynamicWeightAverage(2, temperature=2.0)
        run_epochs(balancer, [([2.0], [2.0]), ([1.0, *extra], [2.0])])
        balancer.start_step(2)
        weights.append(balancer.weights())
    assert torch.equal(*weights)
    assert weights[0][0] < weights[0][1]
