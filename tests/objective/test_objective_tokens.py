"""Objectives over tokens and several logits: what textbrewer adds up, by its own code."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

import raybrew as rb
from raybrew.data.payload import Signal
from raybrew.data.split import IGNORED
from raybrew.losses.match_loss import Ragged
from raybrew.objective import Objective, TrainProgress
from raybrew.objective.rows import ExampleInputs
from raybrew.tasks.sequence_classification import SequenceClassification
from raybrew.tasks.task_type import View

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from textbrewer.distiller_utils import probability_shift_, select_logits_with_mask
    from textbrewer.losses import kd_ce_loss, kd_mse_loss
    from textbrewer.presets import TEMPERATURE_SCHEDULER

torch.set_num_threads(1)

LENGTHS = torch.tensor([5, 2, 3])
MASK = (torch.arange(5) < LENGTHS.unsqueeze(1)).long()
WIDTHS = (4, 3)
FLSW = {"temperature_scheduler": "flsw", "temperature_scheduler_options": {"beta": 1, "gamma": 2}}


class Tokens(SequenceClassification):
    """A class for each token."""

    layout = "token"

    def counts(self, labels: np.ndarray) -> tuple[int, int]:
        return int((labels != IGNORED).sum()), int((labels >= 0).sum())


class Places(SequenceClassification):
    """A place in the text for each example."""

    layout = "position"


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def labels_of_tokens() -> Tensor:
    labels = torch.randint(0, 3, (3, 5), generator=torch.Generator().manual_seed(9))
    return labels.masked_fill(MASK == 0, IGNORED)


def shipped(*logits: Tensor) -> Ragged:
    """What a teacher keeps of an example: its real tokens, the outputs side by side."""
    tokens = torch.stack(logits, -1) if logits[0].dim() == 2 else torch.cat(logits, -1)
    width = tokens.shape[-1]
    offsets = torch.nn.functional.pad(LENGTHS.cumsum(0) * width, (1, 0))
    return Ragged(tokens[MASK.bool()].reshape(-1), offsets)


def loss_of(kind, config, student: View, teachers: list[Ragged], labels: Tensor) -> Tensor:
    names = [f"t{n}" for n in range(len(teachers))]
    objective = Objective(config, dict.fromkeys(names, 1.0), kind=kind)
    soft = {n: {Signal().name: one} for n, one in zip(names, teachers, strict=True)}
    flat = labels[MASK.bool()] if kind.layout == "token" else labels
    counts = flat.numpy(), [LENGTHS.numpy()]
    sums = objective.numerators(student, soft, TrainProgress())
    return objective.total(sums, objective.denominators(*counts), TrainProgress())


def same(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    gradients = torch.autograd.grad(ours, leaves)
    for mine, other in zip(gradients, torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)
        assert mine.abs().max() > 1e-4


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("scheduler", [{}, FLSW], ids=["constant", "flsw"])
@pytest.mark.parametrize(("name", "judge"), [("ce", kd_ce_loss), ("mse", kd_mse_loss)])
@pytest.mark.parametrize("outputs", [1, 2])
def test_one_mask_serves_the_logits_of_tokens(outputs, name, judge, scheduler, shift):
    labels = labels_of_tokens()
    student = [drawn(3, 5, w, seed=n).requires_grad_() for n, w in enumerate(WIDTHS[:outputs])]
    teacher = [drawn(3, 5, w, seed=9 + n) for n, w in enumerate(WIDTHS[:outputs])]
    config = rb.DistillationConfig(
        scale_t2=False, temperature=4, kd_loss=name, probability_shift=shift, **scheduler
    )
    view = View(
        logits=tuple(student),
        labels=(labels,) * outputs,
        logits_mask=(MASK,) * outputs,
        inputs_mask=MASK,
    )
    kept = [each.clone() for each in teacher]
    ours = loss_of(Tokens(), config, view, [shipped(*teacher)], labels)
    assert all(torch.equal(a, b) for a, b in zip(kept, teacher, strict=True))
    theirs = torch.zeros(())
    # Each with a mask of its own: with one for both, theirs breaks on the second.
    for own, other in zip(student, teacher, strict=True):
        shifted = probability_shift_(other.clone(), labels) if shift else other
        (s,), (t,) = (select_logits_with_mask([each], [MASK]) for each in (own, shifted))
        rows = TEMPERATURE_SCHEDULER[["flsw", 1, 2]](s, t, 4) if scheduler else 4
        theirs = theirs + judge(s, t, rows)
    same(ours, theirs, student)


def test_several_teachers_of_tokens_are_the_mean_of_their_logits():
    labels = labels_of_tokens()
    student = drawn(3, 5, 4, seed=0).requires_grad_()
    teachers = [drawn(3, 5, 4, seed=n) for n in (1, 2, 3)]
    view = View(logits=(student,), labels=(labels,), logits_mask=(None,), inputs_mask=MASK)
    ours = loss_of(
        Tokens(),
        rb.DistillationConfig(temperature=8, scale_t2=False),
        view,
        [shipped(each) for each in teachers],
        labels,
    )
    mean = torch.stack(teachers).mean(0)
    (s,), (t,) = (select_logits_with_mask([each], [MASK]) for each in (student, mean))
    same(ours, kd_ce_loss(s, t, 8), [student])


def test_two_places_of_a_text_as_in_question_answering():
    labels = torch.tensor([1, 0, 2])
    student = [drawn(3, 5, seed=n).requires_grad_() for n in (0, 1)]
    teacher = [drawn(3, 5, seed=n) for n in (2, 3)]
    view = View(
        logits=tuple(student), labels=(labels, labels), logits_mask=(None,) * 2, inputs_mask=MASK
    )
    ours = loss_of(
        Places(),
        rb.DistillationConfig(temperature=4, scale_t2=False),
        view,
        [shipped(*teacher)],
        labels,
    )
    # Padding is no place; textbrewer's users put −10000 there.
    hidden = torch.where(MASK == 1, 0.0, -1e4)
    theirs = torch.zeros(())
    for own, other in zip(student, teacher, strict=True):
        theirs = theirs + kd_ce_loss(own + hidden, other + hidden, 4)
    same(ours, theirs, student)


def test_tokens_without_any_label_give_nothing_with_a_graph():
    labels = torch.full((3, 5), IGNORED)
    student = drawn(3, 5, 4, seed=0).requires_grad_()
    view = View(logits=(student,), labels=(labels,), logits_mask=(None,), inputs_mask=MASK)
    config = rb.DistillationConfig(hard_label_weight=1, scale_t2=False)
    loss = loss_of(Tokens(), config, view, [shipped(drawn(3, 5, 4, seed=1))], labels)
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("mixture", ["ca_mkd", "min_ce", "softmax_neg_entropy", "random"])
def test_weights_of_teachers_are_those_of_each_token(mixture):
    """The loss of the tokens one by one, each a batch of its own."""
    labels = labels_of_tokens()
    student = drawn(3, 5, 4, seed=0)
    teachers = [drawn(3, 5, 4, seed=n) for n in (1, 2)]
    keys = torch.tensor([3, 1, 2])
    config = rb.DistillationConfig(temperature=2, mixture=mixture, scale_t2=False)
    view = View(logits=(student,), labels=(labels,), logits_mask=(None,), inputs_mask=MASK)
    objective = Objective(config, {"a": 1.0, "b": 1.0}, kind=Tokens())
    soft = {n: {Signal().name: shipped(t)} for n, t in zip("ab", teachers, strict=True)}
    sums = objective.numerators(view, soft, TrainProgress(), ExampleInputs(keys))
    alone = Objective(config, {"a": 1.0, "b": 1.0})
    total = 0.0
    for example, token in MASK.nonzero().tolist():
        place = slice(token, token + 1)
        row = View(
            logits=(student[example, place],),
            labels=(labels[example, place],),
            logits_mask=(None,),
        )
        labels_of_example = {
            n: {Signal().name: t[example, place]} for n, t in zip("ab", teachers, strict=True)
        }
        inputs = ExampleInputs(keys[example : example + 1])
        own = alone.numerators(row, labels_of_example, TrainProgress(), inputs)
        total += own["kd"].item()
    assert sums["kd"].item() == pytest.approx(total, rel=1e-5)
