"""Rows of tokens, (B, L, C), are rows: the pure parts give what they give of the rows in a line."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raybrew.losses.kd import KD_LOSSES, make_kd_loss
from raybrew.losses.mixture import (
    MIXTURES,
    RowInputs,
    combine,
    make_mixture,
    probability_shift,
    teacher_weights,
)
from raybrew.losses.numerics import TopK
from raybrew.losses.schedules import make_temperature_scheduler

torch.set_num_threads(1)

B, L, C, K = 3, 4, 5, 3
few = settings(deadline=None, max_examples=12)
seeds = st.integers(0, 2**32 - 1)
SCHEDULERS = {"flsw": {"beta": 1.0, "gamma": 2.0}, "cwsm": {"beta": 0.7}}


class Drawn:
    """Logits of a student and K teachers for B × L tokens, some classes masked everywhere."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64, masked: bool = True):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64) * 3

        hidden = torch.rand(B, L, C, generator=generator) < (0.3 if masked else 0.0)
        hidden[..., 0] = False
        self.labels = torch.randint(0, C, (B, L), generator=generator)
        # The true class isn't a masked one, and a third of the tokens have none.
        hidden.scatter_(-1, self.labels.unsqueeze(-1), False)
        self.labels[torch.rand(B, L, generator=generator) < 0.3] = -100
        self.student = normal(B, L, C).masked_fill(hidden, -math.inf).to(dtype).requires_grad_()
        self.teachers = normal(K, B, L, C).masked_fill(hidden, -math.inf).to(dtype)
        self.temperature = torch.rand(B, L, generator=generator, dtype=torch.float64) * 5 + 0.5
        self.keys = torch.randint(0, 2**62, (B, L), generator=generator)
        self.route = torch.randint(0, K, (B, L), generator=generator)
        self.static = torch.rand(K, generator=generator) + 0.1
        self.mask = torch.rand(B, L, generator=generator) < 0.7


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, leaf)
    return found


def flat(values: Tensor) -> Tensor:
    return values.reshape(B * L, *values.shape[2:])


def weighed(mixture, drawn: Drawn, line: bool) -> Tensor:
    given: dict[str, Any] = {"labels": drawn.labels, "route": drawn.route, "row_keys": drawn.keys}
    logits = drawn.teachers
    if line:
        given = {name: flat(value) for name, value in given.items()}
        logits = logits.reshape(K, B * L, C)
    return teacher_weights(mixture, logits, drawn.static, RowInputs(**given))


@pytest.mark.parametrize("name", sorted(KD_LOSSES))
@few
@given(seed=seeds)
def test_kd_losses(name, seed):
    drawn, loss = Drawn(seed), make_kd_loss(name, scale_t2=True)
    mask = drawn.mask if loss.needs_mask else None
    rows = loss(drawn.student, drawn.teachers[0], drawn.temperature, drawn.labels, mask)
    line = loss(
        flat(drawn.student),
        flat(drawn.teachers[0]),
        flat(drawn.temperature),
        flat(drawn.labels),
        None if mask is None else flat(mask),
    )
    torch.testing.assert_close(flat(rows), line)
    # A padded token's row may hold anything at the teacher; its student's row gets no gradient.
    kept = gradient((rows * drawn.mask).sum(), drawn.student)
    assert kept.isfinite().all()
    assert kept[~drawn.mask].abs().sum() == 0


@pytest.mark.parametrize("name", sorted(KD_LOSSES))
@few
@given(seed=seeds)
def test_kd_losses_in_float32_and_bfloat16_are_near_float64(name, seed):
    for dtype, tolerance in ((torch.float32, 2e-4), (torch.bfloat16, 2e-4)):
        drawn, loss = Drawn(seed, dtype, masked=name != "dist"), make_kd_loss(name)
        rows = loss(drawn.student, drawn.teachers[0], 2.0, drawn.labels)
        exact = loss(drawn.student.double(), drawn.teachers[0].double(), 2.0, drawn.labels)
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", sorted(KD_LOSSES))
def test_no_row_at_all_is_nothing_with_a_graph(name):
    student = torch.zeros(0, C, requires_grad=True)
    labels = torch.zeros(0, dtype=torch.int64)
    rows = make_kd_loss(name)(student, torch.zeros(0, C), torch.ones(0), labels)
    assert rows.shape == (0,)
    assert gradient(rows.sum(), student).shape == (0, C)
    if KD_LOSSES[name].top_k:
        nothing = torch.zeros(0)
        top = TopK(torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.int64), nothing)
        assert make_kd_loss(name)(student, top, 1.0).requires_grad


@pytest.mark.parametrize("name", sorted(MIXTURES))
@few
@given(seed=seeds)
def test_mixtures(name, seed):
    drawn, mixture = Drawn(seed), make_mixture(name)
    weights = weighed(mixture, drawn, line=False)
    assert weights.shape == (K, B, L)
    torch.testing.assert_close(weights.reshape(K, B * L), weighed(mixture, drawn, line=True))
    if mixture.sums_losses:
        return
    for temperature in (3.0, drawn.temperature):
        target = combine(mixture, drawn.teachers, weights, temperature)
        line = combine(
            mixture,
            drawn.teachers.reshape(K, B * L, C),
            weights.reshape(K, B * L),
            flat(temperature) if isinstance(temperature, Tensor) else temperature,
        )
        torch.testing.assert_close(flat(target), line)
        assert torch.equal(target.isneginf(), drawn.teachers[0].isneginf())
        loss = make_kd_loss("kl")(drawn.student, target, temperature)
        assert gradient(loss.sum(), drawn.student).isfinite().all()


@pytest.mark.parametrize("name", sorted(MIXTURES))
def test_mixtures_of_no_row(name):
    mixture = make_mixture(name)
    nothing = torch.zeros(0, dtype=torch.int64)
    weights = teacher_weights(
        mixture, torch.zeros(K, 0, C), (1, 1, 1), RowInputs(nothing, nothing, nothing)
    )
    assert weights.shape == (K, 0)
    if not mixture.sums_losses:
        assert combine(mixture, torch.zeros(K, 0, C), weights, 2.0).shape == (0, C)


@few
@given(seed=seeds)
def test_probability_shift(seed):
    drawn = Drawn(seed)
    teacher = drawn.teachers[0]
    shifted = probability_shift(teacher, drawn.labels)
    torch.testing.assert_close(
        flat(shifted), probability_shift(flat(teacher), flat(drawn.labels)), rtol=0, atol=0
    )
    unlabelled = drawn.labels < 0
    assert torch.equal(shifted[unlabelled], teacher[unlabelled])


@pytest.mark.parametrize("name", SCHEDULERS)
@few
@given(seed=seeds)
def test_temperature_schedulers(name, seed):
    drawn, scheduler = Drawn(seed), make_temperature_scheduler(name, SCHEDULERS[name])
    rows = scheduler(drawn.student, drawn.teachers[0], 4.0, drawn.mask)
    assert isinstance(rows, Tensor)
    line = scheduler(flat(drawn.student), flat(drawn.teachers[0]), 4.0, flat(drawn.mask))
    torch.testing.assert_close(flat(rows), line)
    # What is left of a batch when padding is taken out of it has the same temperatures.
    chosen = scheduler(drawn.student[drawn.mask], drawn.teachers[0][drawn.mask], 4.0)
    torch.testing.assert_close(rows[drawn.mask], chosen)
    assert (rows[~drawn.mask] == 4.0).all()


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd"])
@few
@given(seed=seeds, k=st.integers(1, C), temperature=st.floats(0.5, 8.0))
def test_fewer_buckets_tell_no_more_than_all_classes(name, seed, k, temperature):
    """The data processing inequality, with equality at k = C."""
    drawn, loss = Drawn(seed, masked=False), make_kd_loss(name)
    teacher = drawn.teachers[0]
    values, indices = teacher.topk(k, dim=-1)
    whole = (teacher / temperature).logsumexp(-1)
    top = TopK(values, indices, whole)
    dense, less = loss(drawn.student, teacher, temperature), loss(drawn.student, top, temperature)
    # The tail is 1 minus what was kept: of one that is next to nothing, few digits are left, and
    # reverse_kl reads its logarithm.
    tail = 1 - (values / temperature - whole.unsqueeze(-1)).exp().sum(dim=-1)
    readable = (tail > 1e-6) | (k == C)
    assert (less <= dense + 1e-9)[readable].all()
    assert (less >= -1e-12).all()
    if k == C:
        torch.testing.assert_close(less, dense)


@few
@given(seed=seeds, temperature=st.floats(0.5, 8.0))
def test_bounds_of_divergences(seed, temperature):
    drawn = Drawn(seed)
    student, teacher = drawn.student, drawn.teachers[0]

    def rows(name: str, **options: float) -> Tensor:
        return make_kd_loss(name, options)(student, teacher, temperature, drawn.labels)

    assert (rows("tvd") <= 1).all()
    assert (rows("jsd") <= math.log(2)).all()
    assert (rows("jsd", beta=0.1) <= -0.1 * math.log(0.1) - 0.9 * math.log(0.9)).all()
    assert (rows("skew_kl", skew=0.2) <= -math.log(0.2)).all()
    # Pinsker's, and the cross-entropy is the divergence and the teacher's entropy.
    assert (2 * rows("tvd") ** 2 <= rows("kl") + 1e-12).all()
    probs = (teacher / temperature).softmax(-1)
    entropy = -torch.special.xlogy(probs, probs).sum(-1)
    torch.testing.assert_close(rows("ce"), rows("kl") + entropy)
    low, high = (
        torch.minimum(rows("kl"), rows("reverse_kl")),
        torch.maximum(rows("kl"), rows("reverse_kl")),
    )
    mixed = rows("adaptive_kl")
    assert ((low - 1e-12 <= mixed) & (mixed <= high + 1e-12)).all()
