"""KD losses: parity with TextBrewer and with plain formulas, and numbers by hand."""

import math
import warnings

import pytest
import torch
from torch import Tensor

from raybrew.losses.soft import KD_LOSSES, make_kd_loss
from tests.losses import soft_reference

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from textbrewer.losses import kd_ce_loss, kd_mse_loss

torch.set_num_threads(1)

LN2, LN3 = math.log(2), math.log(3)
# p = (1/2, 1/4, 1/4) for the teacher, q = (1/8, 1/8, 3/4) for the student, as logits.
TEACHER = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
STUDENT = torch.tensor([[0.125, 0.125, 0.75]], dtype=torch.float64).log()
KL_BY_HAND = 1.25 * LN2 - 0.25 * LN3
REVERSE_BY_HAND = -0.375 * LN2 + 0.75 * LN3


def random_logits(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss, leaf)
    return result


class TestAgainstTextBrewer:
    @pytest.mark.parametrize("per_row", [False, True])
    @pytest.mark.parametrize(
        ("name", "theirs"), [("ce", kd_ce_loss), ("mse", kd_mse_loss)], ids=["ce", "mse"]
    )
    def test_value_and_gradient_on_ragged_rows(self, name, theirs, per_row):
        student = random_logits(3, 7, 5).requires_grad_()
        teacher = random_logits(3, 7, 5, seed=1)
        mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
        temperature = 1 + torch.rand(3, 7, dtype=torch.float64) if per_row else 4.0
        rows = make_kd_loss(name)(student, teacher, temperature)
        ours = rows[mask].sum() / mask.sum()
        selected = temperature[mask] if isinstance(temperature, Tensor) else temperature
        expected = theirs(student[mask], teacher[mask], selected)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(
            gradient(ours, student), gradient(expected, student), rtol=0, atol=1e-10
        )


class TestAgainstPlainFormulas:
    @pytest.mark.parametrize("temperature", [1.0, 3.0])
    @pytest.mark.parametrize("name", sorted(KD_LOSSES))
    def test_value_and_gradient(self, name, temperature):
        student = random_logits(6, 5).requires_grad_()
        teacher = random_logits(6, 5, seed=1)
        labels = torch.tensor([0, 1, 2, 3, 4, 0])
        side = {"labels": labels} if KD_LOSSES[name].needs_labels else {}
        ours = make_kd_loss(name)(student, teacher, temperature, labels)
        expected = getattr(soft_reference, name)(student, teacher, temperature, **side)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
        weights = torch.arange(1.0, 7.0, dtype=torch.float64)
        torch.testing.assert_close(
            gradient((ours * weights).sum(), student),
            gradient((expected * weights).sum(), student),
            rtol=0,
            atol=1e-10,
        )

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("jsd", {"beta": 0.2}),
            ("skew_kl", {"skew": 0.6}),
            ("skew_reverse_kl", {"skew": 0.6}),
            ("adaptive_kl", {"mu": 0.8}),
            ("dkd", {"alpha": 0.5, "beta": 2.0}),
            ("dist", {"beta": 0.5, "gamma": 3.0}),
            ("logit_std", {"unbiased": True}),
        ],
    )
    def test_options_arrive(self, name, options):
        student, teacher = random_logits(4, 6), random_logits(4, 6, seed=1)
        labels = torch.tensor([0, 1, 2, 3])
        side = {"labels": labels} if KD_LOSSES[name].needs_labels else {}
        reference = getattr(soft_reference, name)
        ours = make_kd_loss(name, options)(student, teacher, 2.0, labels)
        torch.testing.assert_close(ours, reference(student, teacher, 2.0, **side, **options))
        assert not torch.allclose(ours, reference(student, teacher, 2.0, **side))


class TestByHand:
    @pytest.mark.parametrize(
        ("name", "options", "expected"),
        [
            ("ce", {}, 0.5 * 3 * LN2 + 0.25 * 3 * LN2 + 0.25 * (2 * LN2 - LN3)),
            ("kl", {}, KL_BY_HAND),
            ("reverse_kl", {}, REVERSE_BY_HAND),
            (  # m = p/4 + 3q/4 = (7, 5, 20)/32
                "jsd",
                {"beta": 0.25},
                (math.log(16 / 7) / 2 + math.log(8 / 5) / 4 + math.log(2 / 5) / 4) / 4
                + (math.log(4 / 7) / 8 + math.log(4 / 5) / 8 + math.log(6 / 5) * 3 / 4) * 3 / 4,
            ),
            (  # m = (5, 3, 8)/16
                "skew_kl",
                {"skew": 0.5},
                math.log(8 / 5) / 2 + math.log(4 / 3) / 4 - LN2 / 4,
            ),
            (
                "skew_reverse_kl",
                {"skew": 0.5},
                math.log(2 / 5) / 8 + math.log(2 / 3) / 8 + math.log(3 / 2) * 3 / 4,
            ),
            ("tvd", {}, 0.5),
            # Gaps (3, 1, 4)/8; the head is class 0, whose mass ½ reaches μ exactly.
            ("adaptive_kl", {"mu": 0.5}, (3 * KL_BY_HAND + 5 * REVERSE_BY_HAND) / 8),
            # With μ = 0.6 the class that crosses it joins the head.
            ("adaptive_kl", {"mu": 0.6}, (KL_BY_HAND + REVERSE_BY_HAND) / 2),
            (  # (½, ½) against (⅛, ⅞); then (½, ½) against (1/7, 6/7)
                "dkd",
                {"alpha": 3.0, "beta": 2.0},
                3 * (math.log(4) + math.log(4 / 7)) / 2
                + 2 * (math.log(7 / 2) + math.log(7 / 12)) / 2,
            ),
            ("dist", {}, 1.5),  # ρ = −½ within the row; one row has no relation across the batch
        ],
    )
    def test_number(self, name, options, expected):
        rows = make_kd_loss(name, options)(STUDENT, TEACHER, 1.0, torch.tensor([0]))
        assert rows.item() == pytest.approx(expected, abs=1e-12)

    def test_mse(self):
        student = torch.tensor([[1.0, 2.0, 3.0]])
        rows = make_kd_loss("mse")(student, torch.zeros(1, 3), 2.0)
        assert rows.item() == pytest.approx((1 + 4 + 9) / 4 / 3)

    def test_bce(self):
        student = torch.tensor([[0.0, LN3]], dtype=torch.float64)
        teacher = torch.tensor([[LN3, LN3]], dtype=torch.float64)
        entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
        rows = make_kd_loss("bce")(student, teacher, 1.0)
        assert rows.item() == pytest.approx((LN2 + entropy) / 2, abs=1e-12)

    def test_logit_std(self):
        # Z(1, 2, 3) = √1.5 (−1, 0, 1); T = √1.5 leaves (−1, 0, 1) and (1, −1, 0).
        student = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
        teacher = torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.float64)
        rows = make_kd_loss("logit_std", {"eps": 1e-14})(student, teacher, math.sqrt(1.5))
        expected = (2 * math.e - 1 / math.e - 1) / (math.e + 1 / math.e + 1)
        assert rows.item() == pytest.approx(expected, abs=1e-12)

    def test_dist_across_the_batch(self):
        # Within each row ρ = −½. Class 0: ρ = −1; class 1: the student is constant, ρ = 0;
        # class 2: the teacher is constant, nothing to learn. So 3/2 + (2 + 1 + 0)/3.
        teacher = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], dtype=torch.float64).log()
        student = torch.tensor([[1, 1, 6], [6, 1, 1]], dtype=torch.float64).log()
        rows = make_kd_loss("dist")(student, teacher, 1.0)
        assert rows.tolist() == pytest.approx([2.5, 2.5], abs=1e-12)

    @pytest.mark.parametrize("name", sorted(KD_LOSSES))
    def test_scale_t2_multiplies_by_the_square_of_each_temperature(self, name):
        student, teacher = random_logits(2, 4), random_logits(2, 4, seed=1)
        labels = torch.tensor([1, 2])
        temperature = torch.tensor([2.0, 3.0], dtype=torch.float64)
        plain = make_kd_loss(name)(student, teacher, temperature, labels)
        scaled = make_kd_loss(name, scale_t2=True)(student, teacher, temperature, labels)
        assert plain.min() > 0
        torch.testing.assert_close(scaled, plain * torch.tensor([4.0, 9.0], dtype=torch.float64))
