"""Numbers derived by hand for the match losses that TextBrewer lacks."""

import itertools
from math import log, sqrt

import numpy as np
import pytest
import torch

from raybrew.errors import ConfigError
from raybrew.losses.features import match_loss
from raybrew.losses.features.emd import transport_plan
from tests.losses.feature_inputs import RAGGED, WITH_HOLES, direct, make_pair, mean
from tests.losses.textbrewer_judge import textbrewer_losses

torch.set_num_threads(1)


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def value_of(name: str, student: list[torch.Tensor], teacher: list[torch.Tensor], **options):
    loss = match_loss(name, options)
    return mean(loss.loss(student, None, loss.teacher_statistic(teacher, None))).item()


def on_a_line(*points: float) -> list[torch.Tensor]:
    """One example of one token of one entry for each point."""
    return [f64(points).view(-1, 1, 1)]


def test_attention_transfer():
    student = f64([[[1.0, 0.0], [0.0, 1.0]]])  # energies 1, 1 → (1, 1)/√2
    teacher = f64([[[sqrt(3)], [2.0]]])  # energies 3, 4 → (0.6, 0.8)
    expected = (2 - 2 * (0.6 + 0.8) / sqrt(2)) / 2
    assert value_of("attention_transfer", [student], [teacher]) == pytest.approx(expected)


def test_rkd_distance():
    # Distances over their mean: ½, 3/2, 1 and ¾, 3/2, ¾; two of three pairs are ¼ apart.
    value = value_of("rkd_distance", on_a_line(0, 1, 3), on_a_line(0, 1, 2))
    assert value == pytest.approx(4 * 0.5 * 0.25**2 / 9)


def test_rkd_distance_is_linear_beyond_one():
    # 0, 3/2, 3/2 and 3/2, 0, 3/2: two of three pairs are 3/2 apart, huber 3/2 − ½.
    value = value_of("rkd_distance", on_a_line(0, 0, 9), on_a_line(0, 9, 0))
    assert value == pytest.approx(4 * 1.0 / 9)


def test_rkd_angle():
    student = f64([[0, 0], [1, 0], [0, 1]]).unsqueeze(1)  # cosines 0, 1/√2, 1/√2
    teacher = f64([[0, 0], [1, 0], [0.5, sqrt(3) / 2]]).unsqueeze(1)  # ½ at each corner
    expected = 2 * (0.5 * 0.5**2 + 2 * 0.5 * (1 / sqrt(2) - 0.5) ** 2) / 27
    assert value_of("rkd_angle", [student], [teacher]) == pytest.approx(expected)


def test_sp():
    student = f64([[1, 0], [0, 1]]).unsqueeze(1)  # rows of similarity (1, 0), (0, 1)
    teacher = f64([[1, 0], [1, 0]]).unsqueeze(1)  # (1, 1)/√2 twice
    assert value_of("sp", [student], [teacher]) == pytest.approx((2 - sqrt(2)) * 2 / 4)


def test_cka():
    # Centred: (−1, 0, 1) and (−1, −1, 2)/3; (s·t)² / (‖s‖²‖t‖²) = 1 / (2 · 2/3).
    assert value_of("cka", on_a_line(0, 1, 2), on_a_line(0, 0, 1)) == pytest.approx(0.25)
    assert value_of("cka", on_a_line(0, 1, 2), on_a_line(5, 3, 1)) == pytest.approx(0, abs=1e-12)
    assert value_of("cka", on_a_line(4, 4, 4), on_a_line(5, 3, 1)) == pytest.approx(1)


def test_pooling_takes_the_mean_or_the_first_token():
    # Means 0, 1, 3 against 0, 1, 2 as in test_rkd_distance; first tokens have equal shapes.
    student = [f64([[0.0, 0.0], [2.0, 0.0], [4.0, 2.0]]).unsqueeze(-1)]
    teacher = [f64([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]).unsqueeze(-1)]
    by_mean = value_of("rkd_distance", student, teacher)
    assert by_mean == pytest.approx(4 * 0.5 * 0.25**2 / 9)
    assert value_of("rkd_distance", student, teacher, pooling="first") == pytest.approx(0)


# Teacher's rows (¾, ¼) and (½, ½), student's uniform: KL of the first row alone.
ROW_KL = 0.75 * log(1.5) + 0.25 * log(0.5)


def test_minilm_attention():
    teacher = f64([[[[0.75, 0.25], [0.5, 0.5]]]])
    student = f64([[[[0.5, 0.5], [0.5, 0.5]]]])
    assert value_of("minilm_attention", [student], [teacher]) == pytest.approx(ROW_KL / 2)


def test_minilm_value_relation():
    # v vᵀ/√4 = [[ln 3, 0], [0, 0]] with head size 4.
    teacher = torch.zeros(1, 1, 2, 4, dtype=torch.float64)
    teacher[0, 0, 0, 0] = sqrt(2 * log(3))
    student = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    assert value_of("minilm_value_relation", [student], [teacher]) == pytest.approx(ROW_KL / 2)


def test_minilmv2_relation_cuts_heads_anew():
    # Two relation heads of size 1 at the teacher: the first as above, the second uniform.
    states = torch.zeros(1, 2, 2, dtype=torch.float64)
    states[0, 0, 0] = sqrt(log(3))
    student = torch.zeros(1, 2, 4, dtype=torch.float64)
    options = {"num_relation_heads": 2}
    value = value_of("minilmv2_relation", [student], [states], **options)
    assert value == pytest.approx(ROW_KL / 4)
    one_head = states.unsqueeze(1)  # (B, A, L, H/A) with A = 1: the same vectors
    assert value_of("minilmv2_relation", [student], [one_head], **options) == pytest.approx(value)
    heads = states.unflatten(2, (2, 1)).transpose(1, 2)
    assert value_of("minilmv2_relation", [student], [heads], **options) == pytest.approx(value)


def test_emd():
    # Layers at 0, 1 and 0, 1, 1: ½ of mass at 0 fills the ⅓ there, ⅙ moves on at cost 1.
    student = [torch.zeros(1, 1, 1, dtype=torch.float64, requires_grad=True), f64([[[1.0]]])]
    teacher = [f64([[[0.0]]]), f64([[[1.0]]]), f64([[[1.0]]])]
    loss = match_loss("emd")
    value = mean(loss.loss(student, None, loss.teacher_statistic(teacher, None)))
    assert value.item() == pytest.approx(1 / 6)
    (gradient,) = torch.autograd.grad(value, student[:1])
    assert gradient.item() == pytest.approx(1 / 6 * 2 * (0 - 1))
    weighted = value_of("emd", student, teacher, student_weights=[1, 2])
    assert weighted == pytest.approx(0, abs=1e-12)


def test_emd_of_one_layer_is_hidden_mse():
    pair = make_pair("hidden_mse")
    torch.testing.assert_close(
        mean(direct("emd", pair, RAGGED)), mean(direct("hidden_mse", pair, RAGGED))
    )


def test_transport_plan_of_equal_masses_is_the_best_assignment():
    generator = np.random.default_rng(0)
    for size in (2, 3, 4):
        cost = generator.random((size, size))
        equal = np.full(size, 1 / size)
        plan = transport_plan(cost, equal, equal)
        best = min(
            sum(cost[i, j] for i, j in enumerate(order)) / size
            for order in itertools.permutations(range(size))
        )
        assert (plan * cost).sum() == pytest.approx(best)
        np.testing.assert_allclose(plan.sum(axis=1), equal)
        np.testing.assert_allclose(plan.sum(axis=0), equal)


def test_emd_doesnt_depend_on_the_unit_of_cost():
    for scale in (1e-12, 1e12):
        student = [f64([[[0.0]]]), f64([[[scale]]])]
        teacher = [f64([[[scale]]]), f64([[[0.0]]])]
        assert value_of("emd", student, teacher) == pytest.approx(0, abs=1e-14)


def test_emd_refuses_weights_that_dont_fit():
    features = [torch.zeros(1, 2, 3)] * 2
    with pytest.raises(ConfigError, match="2 student layers"):
        value_of("emd", features, features, student_weights=[1.0])
    with pytest.raises(ConfigError, match="2 teacher layers"):
        value_of("emd", features, features, teacher_weights=[-1.0, 2.0])
    with pytest.raises(ConfigError, match="no plan from 1 student"):
        transport_plan(np.ones((1, 1)), np.array([-1.0]), np.array([-1.0]))


@pytest.mark.parametrize("mask", [RAGGED, WITH_HOLES])
@pytest.mark.parametrize(
    ("name", "options", "judge"),
    [
        ("mmd", {}, textbrewer_losses.mmd_loss),
        ("attention_ce", {}, textbrewer_losses.att_ce_loss),
        ("attention_ce_mean", {}, textbrewer_losses.att_ce_mean_loss),
    ],
)
def test_without_padding_equals_textbrewer_on_the_real_tokens_cut_out(name, options, judge, mask):
    """The forms that padding can't change: sums of the values of each sentence by itself."""
    pair = make_pair(name)
    loss = match_loss(name, options)
    value = mean(loss.loss(pair.student, mask, loss.teacher_statistic(pair.teacher, mask)))
    total, count = 0.0, 0
    for row in range(4):
        real = mask[row].nonzero().squeeze(1)
        n = len(real)
        if name == "mmd":
            total += n**2 * judge(
                [s[row : row + 1, real] for s in pair.student],
                [t[row : row + 1, real] for t in pair.teacher],
            )
            count += n**2
        else:
            student = pair.student[0][row : row + 1][..., real, :][..., real]
            teacher = pair.teacher[0][row : row + 1][..., real, :][..., real]
            total += n * judge(student, teacher, torch.ones(1, n))
            count += n
    torch.testing.assert_close(value, total / count, rtol=1e-12, atol=1e-14)
