import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers.trainer_utils import SchedulerType

import raybrew as rb
from raybrew.training.optimization import (
    Amp,
    Optimization,
    build_optimization,
    build_optimizer,
    build_scheduler,
    check_optimization,
)

# The optimizer: fused where torch can, as the job says otherwise; the same steps either way.


def config(optimizer: str, **options: Any) -> rb.TrainingConfig:
    return rb.TrainingConfig(
        num_steps=1, optimizer=optimizer, optimizer_options=options, learning_rate=1e-2
    )


@pytest.mark.parametrize(
    ("optimizer", "options", "fused"),
    [
        ("AdamW", {}, True),
        ("Adam", {"weight_decay": 0.1}, True),
        ("SGD", {"momentum": 0.9}, True),
        ("Adagrad", {}, True),
        ("AdamW", {"fused": False}, False),
        ("AdamW", {"foreach": True}, None),
        ("AdamW", {"differentiable": True}, None),
        ("RMSprop", {}, None),
        ("NAdam", {}, None),
    ],
)
def test_updates_are_fused_where_torch_can_and_the_job_says_nothing_else(optimizer, options, fused):
    made = build_optimizer(nn.Linear(3, 2), config(optimizer, **options))
    assert made.defaults.get("fused") is fused


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_fused_steps_are_those_of_the_loop(optimizer):
    weights = []
    for options in ({}, {"fused": False, "foreach": False}):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
        made = build_optimizer(model, config(optimizer, **options))
        inputs = torch.randn(16, 8)
        for _ in range(20):
            model(inputs).square().sum().backward()
            made.step()
            made.zero_grad()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"optimizer": "LBFGS"}, "training.optimizer"),
        ({"optimizer": "SparseAdam"}, "training.optimizer"),
        ({"lr_scheduler": "reduce_lr_on_plateau"}, "training.lr_scheduler"),
        ({"lr_scheduler": "greedy"}, "training.lr_scheduler"),
        ({"lr_scheduler": "warmup_stable_decay"}, "training.lr_scheduler"),
        ({"lr_scheduler": "cosine_with_min_lr"}, "training.lr_scheduler"),
        ({"lr_scheduler": "cosine_warmup_with_min_lr"}, "training.lr_scheduler"),
    ],
)
def test_what_needs_more_than_we_give_is_refused(changes, field):
    with pytest.raises(rb.ConfigError, match=field):
        check_optimization(rb.TrainingConfig(num_steps=1, **changes))


WARM_UP = 2
# The rate's share of its peak in each of 8 steps, two of them warm-up.
SHARES = {
    "constant": [1.0] * 8,
    "constant_with_warmup": [0, 0.5, 1, 1, 1, 1, 1, 1],
    "linear": [0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6],
    "cosine": [0, 0.5, *[(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]],
    "cosine_with_restarts": [
        0,
        0.5,
        *[(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)],
    ],
    # From the peak 1e-2 to 1e-7.
    "polynomial": [0, 0.5, *[(1 - 1e-5) * (1 - step / 6) + 1e-5 for step in range(6)]],
    "inverse_sqrt": [0, 0.5, *[math.sqrt(WARM_UP / step) for step in range(2, 8)]],
}


def test_every_schedule_of_transformers_is_taken_or_refused():
    def refused(name: str) -> bool:
        try:
            check_optimization(rb.TrainingConfig(num_steps=8, lr_scheduler=name))
        except rb.ConfigError:
            return True
        return False

    assert {kind.value for kind in SchedulerType if not refused(kind.value)} == set(SHARES)


@pytest.mark.parametrize("name", SHARES)
def test_the_learning_rate_of_each_step(name):
    made = rb.TrainingConfig(
        num_steps=8, lr_scheduler=name, learning_rate=1e-2, warmup_ratio=WARM_UP / 8
    )
    optimizer = build_optimizer(nn.Linear(3, 2), made)
    scheduler = build_scheduler(optimizer, made, 8)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1e-2 * share for share in SHARES[name]])


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"momentun": 0.9}, r"'momentun'; did you mean 'momentum'\?"),
        ({"betas": (0.9, 0.98)}, "'betas'"),
        # The job has a field of its own for it.
        ({"lr": 0.1}, "'lr'"),
        ({"params": []}, "'params'"),
    ],
)
def test_options_that_the_optimizer_has_not_got_are_refused(options, wrong):
    with pytest.raises(rb.ConfigError, match=rf"training\.optimizer_options: expected .*{wrong}"):
        check_optimization(config("SGD", **options))
    check_optimization(config("SGD", momentum=0.9, nesterov=True))
    check_optimization(config("AdamW", betas=(0.9, 0.98)))


def test_options_reach_the_optimizer_and_what_it_refuses_is_named():
    made = build_optimizer(nn.Linear(3, 2), config("SGD", momentum=0.9, nesterov=True))
    (group,) = made.param_groups
    assert (group["lr"], group["momentum"], group["nesterov"]) == (1e-2, 0.9, True)
    with pytest.raises(rb.ConfigError, match=r"torch\.optim\.SGD refused .*'nesterov': True"):
        build_optimizer(nn.Linear(3, 2), config("SGD", nesterov=True))


def test_frozen_parameters_are_not_among_those_that_learn():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    further = nn.Linear(2, 1)
    made = build_optimizer(
        model, config("SGD"), [{"params": list(further.parameters()), "lr": 0.5}]
    )
    first, second = made.param_groups
    assert [id(p) for p in first["params"]] == [id(p) for p in model[1].parameters()]
    assert [id(p) for p in second["params"]] == [id(p) for p in further.parameters()]
    assert (first["lr"], second["lr"]) == (1e-2, 0.5)


# Groups of parameters with options of their own.


def grouped(*groups: dict[str, Any]) -> torch.optim.Optimizer:
    model = nn.ModuleDict({"layer_0": nn.Linear(2, 3), "layer_1": nn.Linear(3, 1)})
    made = rb.TrainingConfig(
        num_steps=1,
        optimizer_options={"weight_decay": 0.1},
        learning_rate=1e-2,
        parameter_groups=groups,  # pyright: ignore[reportArgumentType]
    )
    check_optimization(made)
    return build_optimizer(model, made)


def test_decay_and_learning_rates_of_some_parameters():
    optimizer = grouped(
        {"parameters": ["bias$"], "options": {"weight_decay": 0.0}},
        {"parameters": [r"layer_0\."], "learning_rate": 1e-3},
    )
    found = {
        tuple(tuple(p.shape) for p in group["params"]): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
    }
    assert found == {
        ((3, 2),): (1e-3, 0.1),
        ((3,),): (1e-3, 0.0),
        ((1, 3),): (1e-2, 0.1),
        ((1,),): (1e-2, 0.0),
    }


def test_a_group_moves_its_parameters_as_its_options_say():
    optimizer = grouped({"parameters": ["layer_0"], "learning_rate": 0.0})
    (first, second) = (group["params"] for group in optimizer.param_groups)
    before = [p.detach().clone() for p in (*first, *second)]
    for p in (*first, *second):
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = [not torch.equal(p, old) for p, old in zip((*first, *second), before, strict=True)]
    assert moved == [False, False, True, True]


def test_no_groups_are_one_group():
    assert len(grouped().param_groups) == 1


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"parameters": ["layer_7"]}, r"\[0\]\.parameters: expected a pattern .* got 'layer_7'"),
        ({"parameters": ["("]}, r"expected a regular expression, got '\('"),
        ({"parameters": []}, "at least 1 element"),
        (
            {"parameters": ["bias"], "options": {"weight_dcay": 0}},
            r"\[0\]\.options: .*did you mean 'weight_decay'",
        ),
    ],
)
def test_mistakes_in_groups(group, message):
    with pytest.raises(ValueError, match=message):
        grouped(group)


# Population based training: another's state, one's own learning rate and options.

STEPS = 20


def made(learning_rate: float, **options: float) -> tuple[nn.Module, Optimization]:
    config = rb.TrainingConfig(
        num_steps=STEPS, learning_rate=learning_rate, optimizer_options=options
    )
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    return model, build_optimization(model, config, STEPS, torch.device("cpu"))


def train(model: nn.Module, optimization: Optimization, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        model(torch.ones(3, 4)).square().sum().backward()
        optimization.step()
        rates.append(optimization.learning_rate)
    return rates


def moments(optimization: Optimization) -> list[torch.Tensor]:
    return [state["exp_avg"] for state in optimization.optimizer.state.values()]


def test_state_is_taken_over_and_settings_stay():
    donor, donated = made(1e-3, weight_decay=0.1)
    train(donor, donated, 7)
    expected = train(*made(4e-3, weight_decay=0.3), STEPS)
    model, optimization = made(4e-3, weight_decay=0.3)
    model.load_state_dict(donor.state_dict())
    optimization.load_state(*donated.state(), own_settings=True)
    group = optimization.optimizer.param_groups[0]
    assert group["weight_decay"] == 0.3
    pairs = zip(moments(optimization), moments(donated), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    # The learning rate is where its own schedule is after seven steps, and continues from there.
    assert group["lr"] == pytest.approx(expected[6])
    assert train(model, optimization, STEPS - 7) == pytest.approx(expected[7:])


def test_the_same_settings_change_no_bit():
    one, other = made(1e-3), made(1e-3)
    train(*one, 5)
    other[1].load_state(*one[1].state(), own_settings=True)
    rates = [[g["lr"] for g in each.optimizer.param_groups] for _, each in (one, other)]
    assert rates[0] == rates[1]
    schedulers = [each.scheduler for _, each in (one, other)]
    assert schedulers[0] is not None
    assert schedulers[1] is not None
    assert schedulers[0].get_last_lr() == schedulers[1].get_last_lr()
    assert train(*other, 3) == train(*one, 3)


def test_without_own_settings_those_of_the_state_are_taken():
    donor, donated = made(1e-3, weight_decay=0.1)
    rates = train(donor, donated, 7)
    model, optimization = made(4e-3, weight_decay=0.3)
    optimization.load_state(*donated.state())
    assert optimization.optimizer.param_groups[0]["weight_decay"] == 0.1
    assert optimization.learning_rate == rates[-1]
    assert train(model, optimization, 3) == train(donor, donated, 3)


def test_a_skipped_step_leaves_parameters_and_moves_the_schedule():
    (model, optimization), (_, other) = made(1e-3), made(1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.ones(3, 4)).square().sum().backward()
    optimization.skip()
    assert all(torch.equal(b, p) for b, p in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    other.step()
    assert optimization.learning_rate == other.learning_rate > 0


def test_without_a_schedule_the_learning_rate_is_constant():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    optimization = Optimization(optimizer, None, Amp("fp32", torch.device("cpu")))
    assert train(model, optimization, 3) == [0.5] * 3
    tensors, record = optimization.state()
    assert record["scheduler"] == {}
    optimization.load_state(tensors, record)
