"""Population based training: another's state, one's own learning rate and options."""

import pytest
import torch
from torch import nn

import raybrew as rb
from raybrew.student.optimization import OptimizerSettings, build_optimizer, build_scheduler

STEPS = 20


def made(learning_rate: float, **options: float):
    config = rb.TrainingConfig(
        num_steps=STEPS, learning_rate=learning_rate, optimizer_options=options
    )
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = build_optimizer(model, config)
    return model, optimizer, build_scheduler(optimizer, config, STEPS)


def train(model, optimizer, scheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(3, 4)).square().sum().backward()
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


def test_state_is_taken_over_and_settings_stay():
    donor = made(1e-3, weight_decay=0.1)
    train(*donor, 7)
    expected = train(*made(4e-3, weight_decay=0.3), STEPS)
    model, optimizer, scheduler = made(4e-3, weight_decay=0.3)
    settings = OptimizerSettings.of(optimizer)
    model.load_state_dict(donor[0].state_dict())
    optimizer.load_state_dict(donor[1].state_dict())
    scheduler.load_state_dict(donor[2].state_dict())
    settings.restore(optimizer, scheduler)
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    taken = [state["exp_avg"] for state in donor[1].state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, taken, strict=True))
    # The learning rate is where its own schedule is after seven steps, and goes on from there.
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected[6])
    assert train(model, optimizer, scheduler, STEPS - 7) == pytest.approx(expected[7:])


def test_the_same_settings_change_no_bit():
    one, other = made(1e-3), made(1e-3)
    train(*one, 5)
    settings = OptimizerSettings.of(other[1])
    other[1].load_state_dict(one[1].state_dict())
    other[2].load_state_dict(one[2].state_dict())
    settings.restore(other[1], other[2])
    assert [g["lr"] for g in other[1].param_groups] == [g["lr"] for g in one[1].param_groups]
    assert other[2].get_last_lr() == one[2].get_last_lr()
    assert train(*other, 3) == train(*one, 3)
