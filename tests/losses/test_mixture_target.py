"""One target out of several teachers."""

import math
import warnings

import pytest
import torch
from torch import Tensor

from raybrew.errors import ConfigError
from raybrew.losses.mixture import combine, make_mixture, teacher_weights
from raybrew.losses.soft import KD_LOSSES, make_kd_loss

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from textbrewer.losses import kd_ce_loss

torch.set_num_threads(1)

EQUAL = (1.0, 1.0)


def stacked(teachers: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(teachers, *shape, generator=generator, dtype=torch.float64) * 2


def test_mean_logits_equals_textbrewer():
    logits = stacked(3, 5, 4)
    student = stacked(1, 5, 4, seed=1)[0].requires_grad_()
    mixture = make_mixture("mean_logits")
    target = combine(mixture, logits, teacher_weights(mixture, logits, (1, 1, 1)), 4.0)
    ours = make_kd_loss("ce")(student, target, 4.0).mean()
    expected = kd_ce_loss(student, sum(logits) / 3, 4)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, student)[0] for loss in (ours, expected)),
        rtol=0,
        atol=1e-10,
    )


@pytest.mark.parametrize("per_row", [False, True])
def test_mean_probs_is_the_mean_of_the_softmaxes(per_row):
    logits = stacked(2, 3, 2, 4)
    temperature = torch.rand(3, 2, dtype=torch.float64) + 1 if per_row else 3.0
    divisor = temperature.unsqueeze(-1) if isinstance(temperature, Tensor) else temperature
    mixture = make_mixture("mean_probs")
    weights = teacher_weights(mixture, logits, (1.0, 3.0))
    target = combine(mixture, logits, weights, temperature)
    first, second = (logits / divisor).softmax(-1)
    torch.testing.assert_close((target / divisor).softmax(-1), first / 4 + second * 3 / 4)


@pytest.mark.parametrize("name", ["mean_probs", "softmax_neg_ce", "softmax_max_prob"])
def test_kl_to_mean_probs_has_the_gradient_of_the_weighted_sum(name):
    logits, labels = stacked(3, 4, 5), torch.tensor([0, 1, 2, -1])
    student = stacked(1, 4, 5, seed=1)[0].requires_grad_()
    mixture, kl = make_mixture(name), make_kd_loss("kl")
    weights = teacher_weights(mixture, logits, (1.0, 2.0, 3.0), labels)
    one = kl(student, combine(mixture, logits, weights, 2.0), 2.0).sum()
    each = torch.stack([kl(student, teacher, 2.0) for teacher in logits])
    many = (weights * each).sum()
    assert many > one + 0.01
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, student)[0] for loss in (one, many)), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("kd", sorted(KD_LOSSES))
def test_weights_one_and_zero_equal_one_teacher(kd):
    logits, labels = stacked(2, 4, 5), torch.tensor([0, 1, 2, 3])
    logits[1, 2] = math.nan
    student = stacked(1, 4, 5, seed=1)[0]
    loss = make_kd_loss(kd)
    alone = loss(student, logits[0], 2.0, labels)
    for name in ("mean_logits", "mean_probs"):
        if name == "mean_probs" and kd in ("mse", "bce"):
            continue  # a target up to a shift
        mixture = make_mixture(name)
        weights = teacher_weights(mixture, logits, (1.0, 0.0))
        torch.testing.assert_close(
            loss(student, combine(mixture, logits, weights, 2.0), 2.0, labels), alone
        )


def test_sum_losses_has_no_single_target():
    mixture = make_mixture("sum_losses")
    with pytest.raises(ConfigError, match="no single target"):
        combine(mixture, stacked(2, 1, 3), torch.ones(2, 1), 1.0)


@pytest.mark.parametrize("name", ["mean_logits", "mean_probs", "softmax_neg_ce", "min_ce"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes(name, dtype):
    hot = torch.tensor([[1e4, -1e4, 3.0, -math.inf], [0.0, 0.0, 0.0, -math.inf]])
    logits = torch.stack([hot, hot[:, [1, 0, 2, 3]]]).to(dtype)
    student = torch.zeros(2, 4).masked_fill(hot.isneginf(), -math.inf).requires_grad_()
    mixture = make_mixture(name)
    # The label of the second row is a masked class: an infinite cross-entropy everywhere.
    weights = teacher_weights(mixture, logits, EQUAL, torch.tensor([0, 3]))
    assert weights.sum(0).tolist() == pytest.approx([1.0, 1.0])
    target = combine(mixture, logits, weights, 2.0)
    assert target.dtype == torch.float32
    loss = make_kd_loss("kl")(student, target, 2.0)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_the_teachers_are_not_written_to():
    logits = stacked(2, 4, 5)
    before = logits.clone()
    for name in ("mean_logits", "mean_probs", "softmax_neg_ce", "min_ce"):
        mixture = make_mixture(name)
        weights = teacher_weights(mixture, logits, EQUAL, torch.tensor([0, 1, 2, 3]))
        combine(mixture, logits, weights, 2.0).add_(1.0)
    assert torch.equal(logits, before)
