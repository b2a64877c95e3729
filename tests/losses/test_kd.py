import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raybrew.losses.kd import KD_LOSSES, adaptive_kl, make_kd_loss, reverse_kl
from tests.losses import soft_reference

# KD losses: parity with TextBrewer and with plain formulas, and numbers by hand.

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


# KD losses under masks, and finite gradients where they are hard to keep.

FINITE_THOUGH_THE_STUDENT_MASKS = {
    "reverse_kl",
    "jsd",
    "skew_kl",
    "skew_reverse_kl",
    "tvd",
    "dist",
}


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


# Limits of KD losses: where one becomes another, and where a formula would divide by 0.


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


# What holds for every KD loss on any logits.

NAMES = sorted(KD_LOSSES)
few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)
temperatures = st.floats(0.5, 10.0)


def batch(seed: int, rows: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, classes, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, classes, (rows,), generator=generator)
    return student, teacher, labels


@pytest.mark.parametrize("name", NAMES)
@few
@given(seed=seeds, temperature=temperatures, classes=st.integers(2, 7))
def test_the_teacher_itself_is_the_minimum(name, seed, temperature, classes):
    other, teacher, labels = batch(seed, 4, classes)
    student = teacher.clone().requires_grad_()
    loss = make_kd_loss(name)
    least = loss(student, teacher, temperature, labels).sum()
    assert loss(other, teacher, temperature, labels).sum() >= least - 1e-12
    if name not in ("ce", "bce"):  # whose minimum is the teacher's entropy
        assert abs(least.item()) < 1e-9
    if name != "tvd":  # which has a kink at its minimum
        (gradient,) = torch.autograd.grad(least, student)
        assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
@few
@given(seed=seeds, temperature=temperatures)
def test_permuting_the_batch_permutes_the_rows(name, seed, temperature):
    student, teacher, labels = batch(seed, 6, 4)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    loss = make_kd_loss(name)
    rows = loss(student, teacher, temperature, labels)
    moved = loss(student[order], teacher[order], temperature, labels[order])
    torch.testing.assert_close(moved, rows[order])


@pytest.mark.parametrize("name", NAMES)
@few
@given(seed=seeds, lengths=st.lists(st.integers(1, 5), min_size=2, max_size=3))
def test_masked_is_the_subset_whatever_the_padding_holds(name, seed, lengths):
    size = len(lengths) * 5
    student, teacher, labels = batch(seed, size, 4)
    mask = (torch.arange(5) < torch.tensor(lengths).unsqueeze(-1)).reshape(size)
    padded_student = torch.where(mask.unsqueeze(-1), student, 77.0)
    loss = make_kd_loss(name)
    shaped = padded_student.view(-1, 5, 4), teacher.view(-1, 5, 4)
    rows = loss(*shaped, 2.0, labels.view(-1, 5), mask.view(-1, 5))
    subset = loss(student[mask], teacher[mask], 2.0, labels[mask])
    torch.testing.assert_close(rows.view(-1)[mask].sum(), subset.sum())


@pytest.mark.parametrize("name", [name for name in NAMES if not KD_LOSSES[name].needs_mask])
@few
@given(seed=seeds)
def test_a_temperature_for_each_row_is_that_of_its_row(name, seed):
    student, teacher, labels = batch(seed, 3, 4)
    temperature = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    loss = make_kd_loss(name)
    together = loss(student, teacher, temperature, labels)
    for row in range(3):
        alone = slice(row, row + 1)
        single = loss(student[alone], teacher[alone], temperature[row].item(), labels[alone])
        torch.testing.assert_close(together[alone], single)


@pytest.mark.parametrize("name", [name for name in NAMES if KD_LOSSES[name].top_k])
@few
@given(seed=seeds, shift=st.floats(-50, 50))
def test_divergences_ignore_a_shift_of_the_logits(name, seed, shift):
    student, teacher, labels = batch(seed, 3, 4)
    loss = make_kd_loss(name)
    moved = loss(student + shift, teacher - shift, 2.0, labels)
    torch.testing.assert_close(moved, loss(student, teacher, 2.0, labels))
