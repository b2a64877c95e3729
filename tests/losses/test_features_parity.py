"""Value and gradient of every shared match loss against the published textbrewer package."""

import pytest
import torch

from raybrew.losses.features import match_loss
from raybrew.losses.presets import PRESETS
from tests.losses.feature_inputs import MASKS, direct, gradients, make_pair, mean
from tests.losses.textbrewer_judge import textbrewer_losses

torch.set_num_threads(1)

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
