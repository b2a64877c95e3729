import itertools
from math import log, sqrt

import numpy as np
import pytest
import torch

from raybrew.errors import ConfigError
from raybrew.losses.hidden import transport_plan
from raybrew.matches.match_losses import match_loss
from raybrew.matches.presets import PRESETS
from tests.losses.feature_inputs import (
    MASKS,
    RAGGED,
    WITH_HOLES,
    direct,
    gradients,
    make_pair,
    mean,
)
from tests.losses.textbrewer_judge import textbrewer_losses

# Numbers derived by hand for the match losses that TextBrewer lacks.

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


# Value and gradient of every shared match loss against the published textbrewer package.

JUDGES = {
    "attention_mse": textbrewer_losses.att_mse_loss,
    "attention_mse_sum": textbrewer_losses.att_mse_sum_loss,
    "attention_ce of all keys": textbrewer_losses.att_ce_loss,
    "attention_ce_mean of all keys": textbrewer_losses.att_ce_mean_loss,
    "hidden_mse": textbrewer_losses.hid_mse_loss,
    "cos": textbrewer_losses.cos_loss,
    "pkd": textbrewer_losses.pkd_loss,
    "fsp": textbrewer_losses.fsp_loss,
    "gram": textbrewer_losses.fsp_loss,
    "mmd of length": textbrewer_losses.mmd_loss,
}


def judge(name: str, student, teacher, mask):
    if len(student) == 1:
        return JUDGES[name](student[0], teacher[0], mask)
    return JUDGES[name](student, teacher, mask)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mask_kind", MASKS)
@pytest.mark.parametrize("name", JUDGES)
def test_value_and_gradient_equal_textbrewer(name: str, mask_kind: str, seed: int):
    mask = MASKS[mask_kind]
    pair = make_pair(name, seed=seed)
    value = mean(direct(name, pair, mask))
    expected = judge(name, pair.student, pair.teacher, mask)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = gradients(value, pair.student), gradients(expected, pair.student)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert all(gradient.abs().max() > 1e-6 for gradient in ours)


def test_smmd_weighs_what_the_published_recipes_give_it():
    """Their adaptors give no mask, so TextBrewer divides by the hidden size."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.nn.functional.layer_norm(torch.randn(4, 40, size, generator=generator), (size,))
        for size in (312, 768)
    )
    match = PRESETS["L4_hidden_smmd"][0].build_loss()
    recipe = textbrewer_losses.mmd_loss([student] * 2, [teacher] * 2)
    for padded in (40, 128):
        mask = (torch.arange(padded) < 40).expand(4, -1)
        sides = [
            [torch.nn.functional.pad(states, (0, 0, 0, padded - 40), value=1e3)] * 2
            for states in (student, teacher)
        ]
        value = mean(match.loss(sides[0], mask, match.teacher_statistic(sides[1], mask)))
        torch.testing.assert_close(value, recipe, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["attention_mse_sum", "attention_ce_mean of all keys"])
@pytest.mark.parametrize("mask_kind", MASKS)
def test_maps_without_a_head_axis(name: str, mask_kind: str):
    pair = make_pair(name)
    pair.student = [map_.sum(dim=1).detach().requires_grad_() for map_ in pair.student]
    pair.teacher = [map_.sum(dim=1) for map_ in pair.teacher]
    value = mean(direct(name, pair, MASKS[mask_kind]))
    expected = judge(name, pair.student, pair.teacher, MASKS[mask_kind])
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["mmd of length", "fsp"])
@pytest.mark.parametrize("mask_kind", MASKS)
def test_a_layer_with_itself(name: str, mask_kind: str):
    pair = make_pair(name)
    student, teacher = [pair.student[0]] * 2, [pair.teacher[0]] * 2
    pair.student, pair.teacher = student, teacher
    value = mean(direct(name, pair, MASKS[mask_kind]))
    expected = judge(name, student, teacher, MASKS[mask_kind])
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        gradients(value, student[:1]), gradients(expected, student[:1]), rtol=1e-10, atol=1e-10
    )


def test_pkd_of_pooled_vectors():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    teacher = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    loss = match_loss("pkd")
    value = mean(loss.loss([student], None, loss.teacher_statistic([teacher], None)))
    torch.testing.assert_close(
        value, textbrewer_losses.pkd_loss(student, teacher), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("name", ["attention_ce", "attention_ce_mean"])
def test_both_kinds_of_keys_agree_on_scores_that_are_padded_low(name: str):
    mask = MASKS["ragged"]
    assert mask is not None
    pair = make_pair(name)
    padded_key = (mask == 0)[:, None, None, :]
    student = [pair.student[0].detach().masked_fill(padded_key, -1e4).requires_grad_()]
    teacher = [pair.teacher[0].masked_fill(padded_key, -1e4)]
    expected = judge(f"{name} of all keys", student, teacher, mask)
    for keys in ("all", "real"):
        loss = match_loss(name, {"keys": keys})
        value = mean(loss.loss(student, mask, loss.teacher_statistic(teacher, mask)))
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mask_kind", MASKS)
@pytest.mark.parametrize("distance", [1.0, 1e-3])
def test_fsp_of_short_sentences_by_products_of_tokens(mask_kind: str, distance: float):
    """2·L < H: another way to the same number, also near the teacher."""
    generator = torch.Generator().manual_seed(0)
    teacher = [torch.randn(4, 6, 20, generator=generator, dtype=torch.float64) for _ in range(2)]
    student = [
        (
            layer + distance * torch.randn(4, 6, 20, generator=generator, dtype=torch.float64)
        ).requires_grad_()
        for layer in teacher
    ]
    mask = MASKS[mask_kind]
    for pair in ((student, teacher), ([student[0]] * 2, [teacher[0]] * 2)):
        loss = match_loss("fsp")
        value = mean(loss.loss(pair[0], mask, loss.teacher_statistic(pair[1], mask)))
        expected = textbrewer_losses.fsp_loss(*pair, mask)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
        distinct = student[: len({id(layer) for layer in pair[0]})]
        torch.testing.assert_close(
            gradients(value, distinct), gradients(expected, distinct), rtol=1e-10, atol=1e-16
        )
    in_float32 = [layer.detach().float() for layer in student]
    loss = match_loss("fsp")
    statistic = loss.teacher_statistic([layer.float() for layer in teacher], mask)
    rounded = mean(loss.loss(in_float32, mask, statistic))
    exact = textbrewer_losses.fsp_loss(student, teacher, mask)
    # The states themselves are rounded, by 6e-8 of a distance of 1e-3 at worst.
    assert rounded.item() == pytest.approx(exact.item(), rel=2e-4 if distance < 1 else 1e-6)


def test_fsp_ships_either_form_of_the_same_loss():
    pair = make_pair("fsp")
    mask = MASKS["ragged"]
    expected = judge("fsp", pair.student, pair.teacher, mask)
    for payload in ("states", "gram"):
        loss = match_loss("fsp", {"payload": payload})
        value = mean(loss.loss(pair.student, mask, loss.teacher_statistic(pair.teacher, mask)))
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
