"""What holds for every match loss, on any batch."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrew.losses.match_loss import FeatureSizes
from tests.losses.feature_inputs import (
    ALL_LOSSES,
    BATCH_LEVEL,
    HEADS,
    LENGTH,
    NEEDS_SAME_PADDING,
    SAME_SIZE,
    STUDENT_SIZE,
    TEACHER_SIZE,
    WITH_EMPTY_ROW,
    build,
    direct,
    gradients,
    make_pair,
    mean,
)

torch.set_num_threads(1)

seeds = st.integers(0, 2**31)
lengths_of_batch = st.lists(st.integers(0, LENGTH), min_size=2, max_size=4)
quickly = settings(max_examples=10, deadline=None)

# Fourth powers of 1e10 are beyond float32: the loss itself is infinite.
OVERFLOWS_AT_1E10 = {"mmd", "mmd of length", "fsp", "fsp of gram"}
# As TextBrewer's: what the softmax gives to padded keys is missing from the teacher's side, and the
# derivative by a probability is that along the simplex plus a constant.
NO_ZERO_GRADIENT = {*NEEDS_SAME_PADDING - {"mmd of length"}, "minilm_attention"}
IS_ENTROPY = {n for n in ALL_LOSSES if n.startswith("attention_ce")}


def right_mask(lengths: list[int]) -> torch.Tensor:
    return (torch.arange(LENGTH) < torch.tensor(lengths).unsqueeze(1)).long()


def pair_for(name: str, mask: torch.Tensor, seed: int):
    is_map = build(name).features[0] == "attention"
    return make_pair(name, seed, batch=len(mask), probabilities=is_map, mask=mask)


@pytest.mark.parametrize("name", ALL_LOSSES)
@quickly
@given(seed=seeds, lengths=lengths_of_batch, order=st.randoms(use_true_random=False))
def test_permuting_the_batch_permutes_the_values(name, seed, lengths, order):
    mask = right_mask(lengths)
    pair = pair_for(name, mask, seed)
    expected = direct(name, pair, mask)
    places = list(range(len(lengths)))
    order.shuffle(places)
    pair.student = [feature[places] for feature in pair.student]
    pair.teacher = [feature[places] for feature in pair.teacher]
    permuted = direct(name, pair, mask[places])
    torch.testing.assert_close(permuted.numerator, expected.numerator[places])
    torch.testing.assert_close(permuted.denominator, expected.denominator[places])


@pytest.mark.parametrize("name", sorted(set(ALL_LOSSES) - BATCH_LEVEL))
@quickly
@given(seed=seeds, lengths=lengths_of_batch)
def test_micro_batches_add_up(name, seed, lengths):
    mask = right_mask(lengths)
    pair = pair_for(name, mask, seed)
    whole = direct(name, pair, mask)
    for row in range(len(lengths)):
        part = pair_for(name, mask, seed)
        part.student = [feature[row : row + 1] for feature in pair.student]
        part.teacher = [feature[row : row + 1] for feature in pair.teacher]
        alone = direct(name, part, mask[row : row + 1])
        torch.testing.assert_close(alone.numerator, whole.numerator[row : row + 1])
        torch.testing.assert_close(alone.denominator, whole.denominator[row : row + 1])


@pytest.mark.parametrize("name", ALL_LOSSES)
@quickly
@given(seed=seeds, lengths=lengths_of_batch)
def test_a_student_equal_to_the_teacher_is_at_the_minimum(name, seed, lengths):
    mask = right_mask(lengths)
    pair = pair_for(name, mask, seed)
    same = pair_for(name, mask, seed)
    same.student = [feature.clone().requires_grad_() for feature in pair.teacher]
    at_teacher = direct(name, same, mask).numerator
    if name not in NO_ZERO_GRADIENT:
        for gradient in gradients(at_teacher.sum(), same.student):
            assert gradient.abs().max() < 1e-9
    if name in IS_ENTROPY:
        assert direct(name, pair, mask).numerator.sum() >= 0
    else:
        torch.testing.assert_close(at_teacher, torch.zeros_like(at_teacher), rtol=0, atol=1e-9)
        assert (direct(name, pair, mask).numerator >= -1e-12).all()


@pytest.mark.parametrize("name", ALL_LOSSES)
@quickly
@given(seed=seeds, lengths=lengths_of_batch)
def test_denominators_are_known_before_the_forward(name, seed, lengths):
    mask = right_mask(lengths)
    pair = pair_for(name, mask, seed)
    loss = build(name)
    hidden = TEACHER_SIZE if name in SAME_SIZE else STUDENT_SIZE
    heads = 1 if loss.features[0] == "hidden" else HEADS
    known = loss.denominator(mask.sum(dim=1), FeatureSizes(hidden, heads, len(pair.student)))
    torch.testing.assert_close(direct(name, pair, mask).denominator, known, rtol=0, atol=0)
    unmasked = loss.denominator(
        torch.full((len(mask),), LENGTH), FeatureSizes(hidden, heads, len(pair.student))
    )
    torch.testing.assert_close(direct(name, pair, None).denominator, unmasked, rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_an_example_without_a_token_counts_for_nothing(name):
    pair = pair_for(name, WITH_EMPTY_ROW, 0)
    partial = direct(name, pair, WITH_EMPTY_ROW)
    assert partial.numerator[1] == 0
    assert partial.denominator[1] == 0
    for gradient in gradients(mean(partial), pair.student):
        assert gradient[1].abs().max() == 0
        assert gradient[0].abs().max() > 0
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_a_batch_without_a_token_gives_zero_with_a_graph(name):
    pair = make_pair(name, probabilities=build(name).features[0] == "attention")
    partial = direct(name, pair, torch.zeros(4, LENGTH))
    assert partial.numerator.tolist() == [0.0] * 4
    assert partial.denominator.tolist() == [0.0] * 4
    for gradient in gradients(partial.numerator.sum(), pair.student):
        assert gradient.abs().max() == 0


EXTREMES = {
    "zeros": lambda x: x * 0.0,
    "equal rows": lambda x: torch.ones_like(x),
    "1e4": lambda x: x.sign() * 1e4,
    "1e-30": lambda x: x * 1e-30,
    "1e10": lambda x: x * 1e10,
    "bfloat16": lambda x: x.bfloat16(),
    "float16": lambda x: x.half(),
}


@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("side", ["student", "both"])
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_gradients_are_finite_at_extremes(name, side, kind):
    pair = make_pair(name, dtype=torch.float32)
    change = EXTREMES[kind]
    pair.student = [change(feature.detach()).requires_grad_() for feature in pair.student]
    if side == "both":
        pair.teacher = [change(feature) for feature in pair.teacher]
    partial = direct(name, pair, WITH_EMPTY_ROW)
    assert partial.numerator.dtype == torch.float32
    if kind == "1e10" and name in OVERFLOWS_AT_1E10:
        return
    assert partial.numerator.isfinite().all()
    for gradient in gradients(partial.numerator.sum(), pair.student):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", sorted({n for n in ALL_LOSSES if n.startswith("attention_ce")}))
@pytest.mark.parametrize("padded_score", [float("-inf"), -1e4, torch.finfo(torch.float32).min])
def test_padded_keys_of_minus_infinity(name, padded_score):
    mask = WITH_EMPTY_ROW
    pair = make_pair(name, dtype=torch.float32)
    padded_key = (mask == 0)[:, None, None, :]
    pair.student = [
        scores.detach().masked_fill(padded_key, padded_score).requires_grad_()
        for scores in pair.student
    ]
    pair.teacher = [scores.masked_fill(padded_key, padded_score) for scores in pair.teacher]
    partial = direct(name, pair, mask)
    assert partial.numerator.isfinite().all()
    (gradient,) = gradients(partial.numerator.sum(), pair.student)
    assert gradient.isfinite().all()
    unmasked = direct(name, pair, None)
    (gradient,) = gradients(unmasked.numerator[[0, 2, 3]].sum(), pair.student)
    assert gradient[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("name", sorted(set(ALL_LOSSES) - NEEDS_SAME_PADDING))
def test_what_padding_holds_reaches_nothing(name):
    """Any number in hidden states; in attention maps NaN too, which a softmax of −∞ leaves."""
    mask = WITH_EMPTY_ROW
    pair = pair_for(name, mask, 0)
    expected = direct(name, pair, mask)
    is_map = build(name).features[0] == "attention"
    junk = float("nan") if is_map else 1e4

    def spoil(feature: torch.Tensor) -> torch.Tensor:
        padded = (mask == 0)[:, None, :] if feature.dim() == 4 else mask == 0
        spoilt = feature.detach().masked_fill(padded.unsqueeze(-1), junk)
        return spoilt.masked_fill(padded.unsqueeze(-2), junk) if is_map else spoilt

    pair.student = [spoil(feature).requires_grad_() for feature in pair.student]
    pair.teacher = [spoil(feature) for feature in pair.teacher]
    partial = direct(name, pair, mask)
    torch.testing.assert_close(partial, expected)
    for gradient in gradients(partial.numerator.sum(), pair.student):
        assert gradient.isfinite().all()
        assert gradient[1].abs().max() == 0


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_half_precision_of_autocast_reaches_no_product(name):
    pair = make_pair(name, dtype=torch.float32)
    expected = direct(name, pair, WITH_EMPTY_ROW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(direct(name, pair, WITH_EMPTY_ROW), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_masks_of_any_dtype(name):
    pair = pair_for(name, WITH_EMPTY_ROW, 0)
    expected = direct(name, pair, WITH_EMPTY_ROW)
    for dtype in (torch.bool, torch.float32, torch.uint8):
        torch.testing.assert_close(
            direct(name, pair, WITH_EMPTY_ROW.to(dtype)), expected, rtol=0, atol=0
        )


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_a_loss_survives_pickling(name):
    pair = make_pair(name)
    expected = direct(name, pair, WITH_EMPTY_ROW)
    loss = pickle.loads(pickle.dumps(build(name)))
    statistic = loss.teacher_statistic(pair.teacher, WITH_EMPTY_ROW)
    torch.testing.assert_close(
        loss.loss(pair.student, WITH_EMPTY_ROW, statistic), expected, rtol=0, atol=0
    )
