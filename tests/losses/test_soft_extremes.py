"""KD losses under masks, and finite gradients where they are hard to keep."""

import math

import pytest
import torch
from torch import Tensor

from raybrew.losses.soft import KD_LOSSES, make_kd_loss
from raybrew.losses.soft.adaptive_kl import adaptive_kl
from raybrew.losses.soft.reverse_kl import reverse_kl

torch.set_num_threads(1)

FINITE_THOUGH_THE_STUDENT_MASKS = {
    "reverse_kl",
    "jsd",
    "skew_kl",
    "skew_reverse_kl",
    "tvd",
    "dist",
}


def random_logits(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss, leaf)
    return result


class TestMasks:
    def test_dist_over_valid_rows_is_that_of_the_subset(self):
        student = random_logits(2, 5, 4).requires_grad_()
        teacher = random_logits(2, 5, 4, seed=1)
        mask = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)
        loss = make_kd_loss("dist")
        whole = loss(student, teacher, 2.0, None, mask)
        subset = loss(student[mask], teacher[mask], 2.0)
        assert whole[~mask].abs().max() == 0
        torch.testing.assert_close(whole[mask], subset, rtol=0, atol=1e-12)
        grad = gradient(whole.sum(), student)
        assert grad[~mask].abs().max() == 0
        torch.testing.assert_close(grad, gradient(subset.sum(), student))

    def test_dist_without_valid_rows_is_zero_with_a_graph(self):
        student = random_logits(3, 4).requires_grad_()
        rows = make_kd_loss("dist")(
            student, random_logits(3, 4, seed=1), 1.0, None, torch.zeros(3, dtype=torch.bool)
        )
        assert rows.tolist() == [0, 0, 0]
        assert gradient(rows.sum(), student).abs().max() == 0

    @pytest.mark.parametrize("name", sorted(set(KD_LOSSES)))
    def test_classes_masked_on_both_sides_might_as_well_not_exist(self, name):
        student, teacher = random_logits(4, 5), random_logits(4, 5, seed=1)
        keep = torch.tensor([True, True, False, True, False])
        hidden = torch.where(keep, 0.0, -math.inf).double()
        labels, fewer = torch.tensor([0, 1, 3, 3]), torch.tensor([0, 1, 2, 2])
        loss = make_kd_loss(name)
        masked = loss(student + hidden, teacher + hidden, 2.0, labels)
        torch.testing.assert_close(masked, loss(student[:, keep], teacher[:, keep], 2.0, fewer))


class TestExtremes:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("name", sorted(KD_LOSSES))
    def test_gradients_stay_finite(self, name, dtype):
        hot = torch.tensor([1e4, -1e4, 0.0, 5.0, -7.0])
        tie = torch.tensor([1e4, 1e4, -1e4, 0.0, 0.0])
        flat = torch.zeros(5)
        student_rows, teacher_rows = [], []
        for ours in (hot, -hot, tie, flat):
            for theirs in (hot, -hot, tie, flat):
                student_rows.append(ours)
                teacher_rows.append(theirs)
        student, teacher = torch.stack(student_rows).to(dtype), torch.stack(teacher_rows).to(dtype)
        student[::2, 3] = teacher[::2, 3] = -math.inf
        student.requires_grad_()
        labels = torch.arange(16) % 5
        rows = make_kd_loss(name)(student, teacher, 2.0, labels)
        assert rows.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert rows.isfinite().all()
        grad = gradient(rows.sum(), student)
        assert grad.isfinite().all()
        assert grad.abs().max() > 0
        assert grad[::2, 3].abs().max() == 0

    @pytest.mark.parametrize("name", ["kl", "skew_kl", "jsd", "tvd", "ce"])
    def test_bfloat16_is_computed_in_float32(self, name):
        student, teacher = random_logits(4, 8).bfloat16(), random_logits(4, 8, seed=1).bfloat16()
        loss = make_kd_loss(name)
        expected = loss(student.double(), teacher.double(), 3.0)
        torch.testing.assert_close(
            loss(student, teacher, 3.0).double(), expected, rtol=1e-5, atol=1e-6
        )

    def test_a_class_masked_by_the_student_alone_is_an_infinite_kl(self):
        student = torch.tensor([[0.0, -math.inf]])
        assert make_kd_loss("kl")(student, torch.zeros(1, 2), 1.0).isposinf().all()

    def test_float64_on_one_side_is_kept(self):
        rows = make_kd_loss("kl")(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.float64), 1.0)
        assert rows.dtype == torch.float64

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_bce_of_a_label_that_both_sides_are_sure_of_is_zero(self, sign):
        student = torch.tensor([[sign * math.inf, 0.0]], requires_grad=True)
        teacher = torch.tensor([[sign * 1e4, 0.0]])
        rows = make_kd_loss("bce")(student, teacher, 1.0)
        assert rows.item() == pytest.approx(math.log(2) / 2)
        assert gradient(rows.sum(), student).isfinite().all()

    def test_dkd_of_a_teacher_that_leaves_only_the_label(self):
        # The teacher is sure, p = (1, 0, 0); the student has q_y = ½: TCKD = ln 2, NCKD = 0.
        student = torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64).log().requires_grad_()
        teacher = torch.tensor([[0.0, -math.inf, -math.inf]], dtype=torch.float64)
        rows = make_kd_loss("dkd")(student, teacher, 1.0, torch.tensor([0]))
        assert rows.item() == pytest.approx(math.log(2), abs=1e-12)
        assert gradient(rows.sum(), student).tolist()[0] == pytest.approx([-0.5, 0.25, 0.25])

    @pytest.mark.parametrize("masked_side", ["student", "teacher"])
    @pytest.mark.parametrize("name", sorted(KD_LOSSES))
    def test_a_class_that_one_side_masks_is_a_limit_or_infinite(self, name, masked_side):
        """p·log p → 0; a divergence without a limit is +∞, and nothing is NaN."""
        sides = {"student": random_logits(6, 5), "teacher": random_logits(6, 5, seed=1)}
        sides[masked_side][:3, 2] = -math.inf
        labels = torch.tensor([0, 1, 3, 4, 0, 2])
        loss = make_kd_loss(name)
        rows = loss(sides["student"], sides["teacher"], 2.0, labels)
        assert not rows.isnan().any()
        assert rows[3:].isfinite().all()
        if masked_side == "student" and name in FINITE_THOUGH_THE_STUDENT_MASKS:
            assert rows.isfinite().all()
            nearly = sides["student"].clamp(min=-1e6)
            torch.testing.assert_close(rows, loss(nearly, sides["teacher"], 2.0, labels))

    def test_an_infinite_divergence_of_no_weight_counts_for_nothing(self):
        # Both agree on the head, {0}; the tail is masked by the student alone or in part.
        student = torch.tensor([[0.6, 0.4, 0.0]], dtype=torch.float64).log()
        teacher = torch.tensor([[0.6, 0.2, 0.2]], dtype=torch.float64).log()
        torch.testing.assert_close(adaptive_kl(student, teacher), reverse_kl(student, teacher))
