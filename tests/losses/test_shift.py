"""Probability shift: parity where TextBrewer is right, and never in place."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrew.losses.shift import probability_shift

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from textbrewer.distiller_utils import probability_shift_

torch.set_num_threads(1)


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("shape", "lowest"), [((6, 4), 0), ((3, 5, 4), -1)])
def test_equals_textbrewer(shape, lowest):
    teacher = logits(*shape)
    labels = torch.randint(lowest, 4, shape[:-1], generator=torch.Generator().manual_seed(1))
    expected = probability_shift_(teacher.clone(), labels)
    shifted = probability_shift(teacher, labels)
    assert not torch.equal(shifted, teacher)
    torch.testing.assert_close(shifted, expected, rtol=0, atol=0)


def test_by_hand():
    teacher = torch.tensor([[1.0, 5.0, 3.0], [1.0, 5.0, 3.0], [1.0, 5.0, 3.0]])
    shifted = probability_shift(teacher, torch.tensor([2, 1, -100]))
    assert shifted.tolist() == [[1.0, 3.0, 5.0], [1.0, 5.0, 3.0], [1.0, 5.0, 3.0]]


def test_negative_labels_leave_rows_of_two_dimensions_unchanged():
    # TextBrewer takes −1 for the last class here.
    teacher = torch.tensor([[5.0, 1.0, 2.0]])
    assert torch.equal(probability_shift(teacher, torch.tensor([-1])), teacher)


def test_masked_classes_and_ties():
    teacher = torch.tensor([[-math.inf, 2.0, 2.0]])
    assert probability_shift(teacher, torch.tensor([0])).tolist() == [[2.0, -math.inf, 2.0]]
    assert probability_shift(teacher, torch.tensor([2])).tolist() == [[-math.inf, 2.0, 2.0]]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 6))
def test_the_label_wins_and_nothing_is_written_to(seed, classes):
    teacher = logits(4, 3, classes, seed=seed)
    before = teacher.clone()
    labels = torch.randint(-1, classes, (4, 3), generator=torch.Generator().manual_seed(seed))
    shifted = probability_shift(teacher, labels)
    assert torch.equal(teacher, before)
    assert shifted.data_ptr() != teacher.data_ptr()
    assert torch.equal(shifted.sort(-1).values, teacher.sort(-1).values)
    expected = torch.where(labels < 0, teacher.argmax(-1), labels)
    assert torch.equal(shifted.argmax(-1), expected)
