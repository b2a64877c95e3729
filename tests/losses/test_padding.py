"""Padding is no part of an example: no loss, weight or temperature moves with it.

What pads here is what a batch may hold there: −∞ among the logits of positions, anything in hidden
states, NaN in attention maps.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

import raybrew as rb
from raybrew.data.payload import Signal
from raybrew.labels.logits import pack_logits, tensors_of
from raybrew.losses.kd import KD_LOSSES
from raybrew.losses.mixture import MIXTURES
from raybrew.objective import Objective, TrainProgress
from raybrew.objective.rows import ExampleInputs
from raybrew.tasks import TASK_TYPES
from raybrew.tasks.task_type import View
from tests.losses.feature_inputs import (
    ALL_LOSSES,
    LENGTH,
    NEEDS_SAME_PADDING,
    build,
    gradients,
    grow,
    join,
    make_pair,
    split,
)

torch.set_num_threads(1)

quickly = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 2**31)
more = st.integers(1, 9)
SCHEDULERS = {"flsw": {"beta": 1.0, "gamma": 2.0}, "cwsm": {"beta": 1.0}}


@pytest.mark.parametrize("name", sorted(set(ALL_LOSSES) - NEEDS_SAME_PADDING))
@quickly
@given(
    seed=seeds,
    lengths=st.lists(st.integers(0, LENGTH), min_size=2, max_size=4),
    teacher_extra=st.integers(0, 9),
    student_extra=st.integers(0, 9),
)
def test_match_losses(name, seed, lengths, teacher_extra, student_extra):
    """Value, denominator, gradient; the statistic is made under another padding than is read."""
    mask = (torch.arange(LENGTH) < torch.tensor(lengths).unsqueeze(1)).long()
    loss = build(name)
    is_map = loss.features[0] == "attention"
    pair = make_pair(name, seed, batch=len(lengths), probabilities=is_map, mask=mask)
    junk = math.nan if is_map else 1e4

    def through(teacher_extra: int, student_extra: int):
        padded = pad(mask, (0, teacher_extra))
        teacher = [grow(feature, name, teacher_extra, junk) for feature in pair.teacher]
        kept = split(loss.pack(loss.teacher_statistic(teacher, padded), padded))
        padded = pad(mask, (0, student_extra))
        student = [grow(feature, name, student_extra, junk) for feature in pair.student]
        return kept, loss.loss(student, padded, loss.unpack(join(kept), padded, pair.sizes))

    kept, expected = through(0, 0)
    same_kept, found = through(teacher_extra, student_extra)
    torch.testing.assert_close(same_kept, kept, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        gradients(found.numerator.sum(), pair.student),
        gradients(expected.numerator.sum(), pair.student),
        rtol=1e-10,
        atol=1e-12,
    )


def of_positions(config: rb.DistillationConfig, seed: int, extra: int) -> tuple[float, Tensor]:
    """The loss of questions whose classes are their tokens, and the student's gradient."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([6, 3, 5])
    mask = torch.arange(6) < lengths.unsqueeze(1)
    logits = [torch.randn(3, 6, generator=generator) * 3 for _ in range(6)]
    student = [each.clone().requires_grad_() for each in logits[:2]]
    labels = (torch.tensor([2, 0, -1]), torch.tensor([5, 2, -1]))
    padded = pad(mask.long(), (0, extra))
    kept = {}
    for number, name in enumerate("ab"):
        outputs = tuple(pad(each, (0, extra), value=1e4) for each in logits[2 + 2 * number :][:2])
        payload, _ = pack_logits(outputs, padded, "position", Signal())
        kept[name] = {Signal().name: tensors_of(payload, Signal())}
    view = View(
        logits=tuple(pad(each, (0, extra), value=-1e4) for each in student),
        logits_mask=(None, None),
        labels=labels,
        inputs_mask=padded,
    )
    objective = Objective(config, {"a": 1.0, "b": 0.5}, kind=TASK_TYPES["question-answering"])
    examples = ExampleInputs(torch.tensor([11, 12, 13]), route=torch.tensor([0, 1, 1]))
    sums = objective.numerators(view, kept, TrainProgress(), examples)
    counts = np.stack([each.numpy() for each in labels], axis=1), [lengths.numpy()]
    total = objective.total(sums, objective.denominators(*counts), TrainProgress())
    return float(total.detach()), torch.stack(gradients(total, student))


def same_at_any_padding(config: rb.DistillationConfig, seed: int, extra: int) -> None:
    expected, gradient = of_positions(config, seed, 0)
    found, same_gradient = of_positions(config, seed, extra)
    assert math.isfinite(expected)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert gradient.isfinite().all()
    torch.testing.assert_close(same_gradient, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(KD_LOSSES))
@quickly
@given(seed=seeds, extra=more)
def test_kd_and_hard_losses_over_positions(name, seed, extra):
    config = rb.DistillationConfig(temperature=2, kd_loss=name, hard_label_weight=1)
    same_at_any_padding(config, seed, extra)


@pytest.mark.parametrize("mixture", sorted(MIXTURES))
@quickly
@given(seed=seeds, extra=more)
def test_mixtures_over_positions(mixture, seed, extra):
    same_at_any_padding(rb.DistillationConfig(mixture=mixture, kd_loss="kl"), seed, extra)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@quickly
@given(seed=seeds, extra=more, shift=st.booleans())
def test_temperatures_over_positions(name, seed, extra, shift):
    config = rb.DistillationConfig(
        temperature_scheduler=name,
        temperature_scheduler_options=SCHEDULERS[name],
        probability_shift=shift,
    )
    same_at_any_padding(config, seed, extra)
