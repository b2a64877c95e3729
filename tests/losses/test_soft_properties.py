"""What holds for every KD loss on any logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raybrew.losses.soft import KD_LOSSES, make_kd_loss

torch.set_num_threads(1)

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
