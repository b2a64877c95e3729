"""Limits of KD losses: where one becomes another, and where a formula would divide by 0."""

import pytest
import torch
from torch import Tensor

from raybrew.losses.soft import make_kd_loss

torch.set_num_threads(1)


def random_logits(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss, leaf)
    return result


class TestLimits:
    @pytest.mark.parametrize(
        ("skewed", "plain"), [("skew_kl", "kl"), ("skew_reverse_kl", "reverse_kl")]
    )
    def test_skew_tends_to_the_plain_divergence(self, skewed, plain):
        student, teacher = random_logits(5, 4), random_logits(5, 4, seed=1)
        expected = make_kd_loss(plain)(student, teacher, 1.0)
        errors = [
            (make_kd_loss(skewed, {"skew": skew})(student, teacher, 1.0) - expected).abs().max()
            for skew in (1e-3, 1e-6, 1e-9)
        ]
        assert errors[0] > errors[1] > errors[2] > 0
        assert errors[2] < 1e-5
        torch.testing.assert_close(
            make_kd_loss(skewed, {"skew": 0.0})(student, teacher, 1.0), expected, rtol=0, atol=0
        )

    def test_jsd_is_symmetric_at_a_half_only(self):
        student, teacher = random_logits(5, 4), random_logits(5, 4, seed=1)
        half, skewed = make_kd_loss("jsd"), make_kd_loss("jsd", {"beta": 0.3})
        torch.testing.assert_close(half(student, teacher, 1.0), half(teacher, student, 1.0))
        assert not torch.allclose(skewed(student, teacher, 1.0), skewed(teacher, student, 1.0))

    def test_dkd_with_the_rest_of_the_mass_is_kl(self):
        student, teacher = random_logits(6, 5), random_logits(6, 5, seed=1)
        labels = torch.tensor([0, 1, 2, 3, 4, 1])
        expected = make_kd_loss("kl")(student, teacher, 2.0)
        for row in range(6):
            rest = 1 - (teacher[row] / 2).softmax(-1)[labels[row]].item()
            loss = make_kd_loss("dkd", {"alpha": 1.0, "beta": rest})
            value = loss(student[row : row + 1], teacher[row : row + 1], 2.0, labels[row : row + 1])
            torch.testing.assert_close(value, expected[row : row + 1], rtol=0, atol=1e-10)

    def test_dkd_of_an_unlabelled_row_is_kl(self):
        student, teacher = random_logits(2, 5), random_logits(2, 5, seed=1)
        rows = make_kd_loss("dkd")(student, teacher, 2.0, torch.tensor([-100, 3]))
        plain = make_kd_loss("kl")(student, teacher, 2.0)
        assert rows[0] == plain[0]
        assert rows[1] != plain[1]

    def test_dkd_of_two_classes_has_the_target_part_only(self):
        student = random_logits(4, 2).requires_grad_()
        teacher = random_logits(4, 2, seed=1)
        labels = torch.tensor([0, 1, 1, 0])
        rows = make_kd_loss("dkd", {"alpha": 2.0, "beta": 1e6})(student, teacher, 1.0, labels)
        expected = 2 * make_kd_loss("kl")(student, teacher, 1.0)
        torch.testing.assert_close(rows, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(
            gradient(rows.sum(), student), gradient(expected.sum(), student), rtol=0, atol=1e-10
        )

    def test_ce_and_kl_have_the_same_gradient(self):
        student = random_logits(4, 5).requires_grad_()
        teacher = random_logits(4, 5, seed=1)
        ce, kl = (make_kd_loss(name)(student, teacher, 2.0).sum() for name in ("ce", "kl"))
        assert ce > kl + 0.1
        torch.testing.assert_close(gradient(ce, student), gradient(kl, student))

    def test_adaptive_kl_of_equal_sides_is_zero_with_a_gradient(self):
        student = random_logits(2, 4).requires_grad_()
        rows = make_kd_loss("adaptive_kl")(student, student.detach().clone(), 1.0)
        assert rows.abs().max() == 0
        assert gradient(rows.sum(), student).isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dist_of_a_student_that_is_constant_has_a_finite_gradient(self, dtype):
        student = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
        rows = make_kd_loss("dist")(student, random_logits(3, 4).to(dtype), 1.0)
        torch.testing.assert_close(rows, torch.full((3,), 2.0, dtype=dtype))
        assert gradient(rows.sum(), student).isfinite().all()
