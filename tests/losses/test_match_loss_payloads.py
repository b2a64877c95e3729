"""The objective from reduced, stored and padded-again statistics equals that from full tensors."""

import pytest
import torch

from raybrew.errors import ConfigError, LabelError
from raybrew.losses.match_loss import FeatureSizes
from tests.losses.feature_inputs import (
    ALL_LOSSES,
    MASKS,
    NEEDS_SAME_PADDING,
    RAGGED,
    TEACHER_SIZE,
    WITH_EMPTY_ROW,
    WITH_HOLES,
    build,
    direct,
    gradients,
    grow,
    join,
    make_pair,
    mean,
    split,
)

torch.set_num_threads(1)

# Payload dtype → tolerance of value and gradient, relative to their size.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def takes_maps(name: str) -> bool:
    return build(name).features[0] == "attention"


def shipped(name: str, pair, mask, dtype: torch.dtype):
    """What arrives after a trip through the store: one flat row per example."""
    loss = build(name)
    ragged = loss.pack(loss.teacher_statistic(pair.teacher, mask), mask)
    return join([row.to(dtype) for row in split(ragged)])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("mask_kind", MASKS)
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_reduced_equals_direct(name: str, mask_kind: str, dtype: torch.dtype):
    mask = MASKS[mask_kind]
    pair = make_pair(name, probabilities=takes_maps(name), mask=mask)
    expected = mean(direct(name, pair, mask))
    statistic = build(name).unpack(
        shipped(name, pair, mask, dtype), mask, pair.sizes, padded_length=6
    )
    assert statistic.dtype == dtype
    value = mean(build(name).loss(pair.student, mask, statistic))
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance / 100)
    for ours, theirs in zip(
        gradients(value, pair.student), gradients(expected, pair.student), strict=True
    ):
        assert (ours - theirs).norm() <= tolerance * 4 * theirs.norm()


@pytest.mark.parametrize("name", ["attention_ce of all keys", "attention_ce_mean of all keys"])
@pytest.mark.parametrize("padded_score", [-1e4, float("-inf")])
def test_raw_scores_keep_their_padding_low(name: str, padded_score: float):
    pair = make_pair(name)
    pair.teacher = [
        scores.masked_fill((RAGGED == 0)[:, None, None, :], padded_score) for scores in pair.teacher
    ]
    expected = mean(direct(name, pair, RAGGED))
    statistic = build(name).unpack(shipped(name, pair, RAGGED, torch.float64), RAGGED, pair.sizes)
    value = mean(build(name).loss(pair.student, RAGGED, statistic))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_a_row_depends_on_its_own_real_tokens_alone(name: str):
    """Not on the padding, and not on the other rows of the batch."""
    loss = build(name)
    is_map = takes_maps(name)
    pair = make_pair(name, probabilities=is_map, mask=RAGGED)
    together = split(shipped(name, pair, RAGGED, torch.float64))
    for row in range(4):
        length = int(RAGGED[row].sum())
        alone = [
            feature[row : row + 1, ..., :length, :length]
            if is_map
            else feature[row : row + 1, ..., :length, :]
            for feature in pair.teacher
        ]
        mask = torch.ones(1, length)
        (own,) = split(loss.pack(loss.teacher_statistic(alone, mask), mask))
        torch.testing.assert_close(together[row], own, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", sorted(set(ALL_LOSSES) - NEEDS_SAME_PADDING))
def test_more_padding_changes_nothing(name: str):
    pair = make_pair(name, probabilities=takes_maps(name), mask=RAGGED)
    expected = direct(name, pair, RAGGED)
    ragged = shipped(name, pair, RAGGED, torch.float64)
    mask = torch.nn.functional.pad(RAGGED, (0, 3))
    junk = float("nan") if takes_maps(name) else 1e4
    student = [grow(feature, name, 3, junk) for feature in pair.student]
    statistic = build(name).unpack(ragged, mask, pair.sizes)
    padded_more = build(name).loss(student, mask, statistic)
    torch.testing.assert_close(padded_more, expected, rtol=1e-12, atol=1e-14)
    ours = gradients(mean(padded_more), pair.student)
    torch.testing.assert_close(
        ours, gradients(mean(expected), pair.student), rtol=1e-12, atol=1e-14
    )


def test_mmd_as_in_textbrewer_falls_with_the_square_of_the_padded_length():
    name = "mmd of length"
    pair = make_pair(name)
    expected = mean(direct(name, pair, RAGGED))
    mask = torch.nn.functional.pad(RAGGED, (0, 6))
    pair.student = [grow(feature, name, 6) for feature in pair.student]
    pair.teacher = [grow(feature, name, 6) for feature in pair.teacher]
    torch.testing.assert_close(mean(direct(name, pair, mask)), expected / 4)


@pytest.mark.parametrize("name", ["hidden_mse", "mmd", "attention_mse", "emd"])
def test_rows_go_where_another_mask_has_its_real_tokens(name: str):
    """Student's padding on the right, the teacher's in between: the same tokens in order."""
    pair = make_pair(name)
    lengths = WITH_HOLES.sum(dim=1)
    ragged = shipped(name, pair, WITH_HOLES, torch.float64)
    right = (torch.arange(6) < lengths.unsqueeze(1)).long()
    statistic = build(name).unpack(ragged, right, pair.sizes)
    back = split(build(name).pack(statistic, right))
    torch.testing.assert_close(back, split(ragged), rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_payload_shape_tells_the_size_of_each_row(name: str):
    pair = make_pair(name)
    for row, length in zip(
        split(shipped(name, pair, WITH_EMPTY_ROW, torch.float64)),
        WITH_EMPTY_ROW.sum(dim=1).tolist(),
        strict=True,
    ):
        shape = build(name).payload_shape(length, pair.sizes)
        assert row.numel() == torch.Size(shape).numel()


def test_payload_shapes_of_bert_base():
    sizes = FeatureSizes(hidden=768, heads=12)
    expected = {
        "hidden_mse": (27, 768),
        "cos": (27, 768),
        "pkd": (768,),
        "mmd": (27, 27),
        "fsp": (1, 27, 768),
        "fsp of gram": (768, 768),
        "attention_mse": (12, 27, 27),
        "attention_mse_sum": (27, 27),
        "attention_transfer": (27,),
        "rkd_angle": (768,),
        "minilmv2_relation": (2, 27, 27),
    }
    for name, shape in expected.items():
        assert build(name).payload_shape(27, sizes) == shape


def test_a_row_of_another_length_is_refused():
    pair = make_pair("hidden_mse")
    ragged = shipped("hidden_mse", pair, RAGGED, torch.float64)
    other = RAGGED.clone()
    other[1, 3] = 1
    with pytest.raises(LabelError, match=r"Row 1 .*4 real tokens.* 32 numbers; it holds 24"):
        build("hidden_mse").unpack(ragged, other, FeatureSizes(TEACHER_SIZE))
    with pytest.raises(LabelError, match="Labels of 4 examples came for a batch of 3"):
        build("hidden_mse").unpack(ragged, RAGGED[:3], FeatureSizes(TEACHER_SIZE))


def test_a_statistic_of_another_shape_is_refused():
    loss = build("hidden_mse")
    with pytest.raises(ConfigError, match=r"'hidden_mse'.*\[4, 6, 6\]; got \[4, 6, 8\]"):
        loss.loss([torch.zeros(4, 6, 6)], None, torch.zeros(4, 6, 8))
    with pytest.raises(ConfigError, match=r"'mmd'.*\[4, 6, 6\]; got \[4, 5, 5\]"):
        build("mmd").loss([torch.zeros(4, 6, 6)] * 2, None, torch.zeros(4, 5, 5))


def test_the_teachers_tensors_are_left_as_they_are():
    for name in ALL_LOSSES:
        pair = make_pair(name)
        before = [feature.clone() for feature in pair.teacher]
        statistic = build(name).teacher_statistic(pair.teacher, RAGGED)
        kept = statistic.clone()
        mean(build(name).loss(pair.student, RAGGED, statistic)).backward()
        torch.testing.assert_close(pair.teacher, before, rtol=0, atol=0)
        torch.testing.assert_close(statistic, kept, rtol=0, atol=0)
