"""The optimizer: fused where torch can, as the job says otherwise; the same steps either way."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.trainer_utils import SchedulerType

import raybrew as rb
from raybrew.student.optimization import build_optimizer, build_scheduler, check_optimization


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


@pytest.mark.parametrize("name", [kind.value for kind in SchedulerType])
def test_every_schedule_that_is_not_refused_can_be_stepped(name):
    made = rb.TrainingConfig(num_steps=8, lr_scheduler=name)
    try:
        check_optimization(made)
    except rb.ConfigError:
        return
    optimizer = build_optimizer(nn.Linear(3, 2), made)
    scheduler = build_scheduler(optimizer, made, 8)
    for _ in range(8):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr()[0] >= 0
