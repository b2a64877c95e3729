"""Top-k with a tail: k + 1 buckets."""

import math

import pytest
import torch
from torch import Tensor

from raybrew.errors import ConfigError
from raybrew.losses.kd import KD_LOSSES, make_kd_loss
from raybrew.losses.numerics import TopK

torch.set_num_threads(1)

WITH = sorted(name for name, loss in KD_LOSSES.items() if loss.top_k)
WITHOUT = sorted(name for name, loss in KD_LOSSES.items() if not loss.top_k)


def reduced(teacher: Tensor, k: int, temperature: float) -> TopK:
    values, indices = teacher.topk(k, dim=-1)
    return TopK(values, indices, (teacher / temperature).logsumexp(-1))


def logits(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * 2


def test_the_contract_names_these():
    assert WITH == ["ce", "jsd", "kl", "reverse_kl", "skew_kl", "skew_reverse_kl", "tvd"]


@pytest.mark.parametrize("name", WITH)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_all_classes_equal_the_dense_loss(name, dtype):
    student = logits(2, 3, 6, seed=0).to(dtype).requires_grad_()
    teacher = logits(2, 3, 6, seed=1).to(dtype)
    loss = make_kd_loss(name)
    dense, topped = loss(student, teacher, 3.0), loss(student, reduced(teacher, 6, 3.0), 3.0)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(topped, dense, rtol=0, atol=tolerance)
    (expected,) = torch.autograd.grad(dense.sum(), student)
    (got,) = torch.autograd.grad(topped.sum(), student)
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def test_all_classes_need_no_logsumexp():
    student, teacher = logits(2, 4, seed=0), logits(2, 4, seed=1)
    topped = TopK(*teacher.topk(4, dim=-1), {})
    loss = make_kd_loss("kl")
    torch.testing.assert_close(loss(student, topped, 3.0), loss(student, teacher, 3.0))


@pytest.mark.parametrize("name", WITH)
def test_fewer_equal_the_dense_loss_of_merged_classes(name):
    student = logits(4, 8, seed=0).requires_grad_()
    teacher = logits(4, 8, seed=1)
    topped = reduced(teacher, 3, 2.0)
    rows = make_kd_loss(name)(student, topped, 2.0)

    def merged(values: Tensor) -> Tensor:
        probs = (values / 2.0).softmax(-1)
        kept = probs.gather(-1, topped.indices)
        return torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1).log()

    expected = make_kd_loss(name)(merged(student), merged(teacher), 1.0)
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-10)
    (got,) = torch.autograd.grad(rows.sum(), student)
    (wanted,) = torch.autograd.grad(expected.sum(), student)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


def test_kl_by_hand():
    # p = (1/2, 1/4, 1/8, 1/8), q = (1/8, 1/8, 1/4, 1/2); the tail is 1/4 against 3/4.
    teacher = torch.tensor([[4.0, 2.0, 1.0, 1.0]], dtype=torch.float64).log()
    student = torch.tensor([[1.0, 1.0, 2.0, 4.0]], dtype=torch.float64).log()
    rows = make_kd_loss("kl")(student, reduced(teacher, 2, 1.0), 1.0)
    expected = 0.5 * math.log(4) + 0.25 * math.log(2) + 0.25 * math.log(1 / 3)
    assert rows.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", WITH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tail_below_rounding_stays_finite(name, dtype):
    teacher = torch.tensor([[60.0, 0.0, 0.0, 0.0, 0.0], [1e4, -1e4, 0.0, 0.0, 0.0]]).to(dtype)
    student = torch.zeros(2, 5, dtype=dtype, requires_grad=True)
    topped = TopK(*teacher.topk(2), teacher.float().logsumexp(-1))
    rows = make_kd_loss(name)(student, topped, 1.0)
    (gradient,) = torch.autograd.grad(rows.sum(), student)
    assert rows.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", WITH)
def test_others_masked_on_both_sides_leave_no_tail(name):
    keep = torch.tensor([True, True, True, False, False])
    hidden = torch.where(keep, 0.0, -math.inf).double()
    student = (logits(3, 5, seed=0) + hidden).requires_grad_()
    teacher = logits(3, 5, seed=1) + hidden
    loss = make_kd_loss(name)
    rows = loss(student, reduced(teacher, 3, 2.0), 2.0)
    dense = loss(student, teacher, 2.0)
    torch.testing.assert_close(rows, dense, rtol=0, atol=1e-10)
    (gradient,) = torch.autograd.grad(rows.sum(), student)
    assert gradient.isfinite().all()


def test_the_logsumexp_is_looked_up_by_temperature():
    student, teacher = logits(2, 6, seed=0), logits(2, 6, seed=1)
    values, indices = teacher.topk(2, dim=-1)
    kept = {t: (teacher / t).logsumexp(-1) for t in (1.0, 4.0)}
    topped = TopK(values, indices, kept)
    loss = make_kd_loss("kl")
    for temperature in (1, 4.0, torch.tensor(4.0)):
        alone = reduced(teacher, 2, float(temperature))
        torch.testing.assert_close(
            loss(student, topped, temperature), loss(student, alone, temperature)
        )
    with pytest.raises(ConfigError, match=r"T = \[1.0, 4.0\], and T = 2.0"):
        loss(student, topped, 2.0)
    with pytest.raises(ConfigError, match="constant temperature"):
        loss(student, topped, torch.tensor([1.0, 4.0]))


@pytest.mark.parametrize("name", WITHOUT)
def test_losses_without_a_top_k_form_say_so(name):
    labels = torch.tensor([0, 1])
    with pytest.raises(ConfigError, match=f"'{name}' has no top-k form"):
        make_kd_loss(name)(logits(2, 4, seed=0), reduced(logits(2, 4, seed=1), 2, 1.0), 1.0, labels)


@pytest.mark.parametrize(("rows", "classes"), [(3, 4), (2, 2)])
def test_other_rows_or_too_many_classes_are_refused(rows, classes):
    topped = reduced(logits(rows, 4, seed=1), 3, 1.0)
    with pytest.raises(ConfigError, match="don't fit"):
        make_kd_loss("kl")(logits(2, classes, seed=0), topped, 1.0)
