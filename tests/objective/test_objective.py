"""The objective: numbers by hand, parts and ranks that change nothing, reduced = direct."""

import math

import numpy as np
import pytest
import torch

import raybrew as rb
from raybrew.data.payload import Signal
from raybrew.errors import ConfigError, TeacherError
from raybrew.labels.logits import pack_rows, tensors_of
from raybrew.losses.numerics import TopK
from raybrew.matches.capture import pack_features
from raybrew.matches.match_losses import MATCH_LOSSES, match_loss
from raybrew.matches.plan import TaskMatch, plan_matches
from raybrew.matches.presets import ModelGeometry
from raybrew.matches.spec import MatchSpec
from raybrew.objective import Objective, TrainProgress
from raybrew.objective.rows import ExampleInputs
from raybrew.tasks import TASK_TYPES
from raybrew.tasks.task_type import View

HEADS, LENGTH, CLASSES = 2, 6, 3
LENGTHS = [6, 3, 1, 4, 2, 5]
MASK = torch.tensor([[int(i < n) for i in range(LENGTH)] for n in LENGTHS])
LABELS = torch.tensor([0, 2, -1, 1, 1, 0])
GEOMETRY = ModelGeometry(num_layers=2, hidden_size=8, num_heads=HEADS)
# Their values depend on which examples a forward pass compares.
OF_A_BATCH = {"rkd_distance", "rkd_angle", "sp", "cka", "emd"}
TWO_LAYERS = {"fsp", "gram", "mmd", "nst"}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def soft(**logits: torch.Tensor):
    return {name: {Signal().name: value} for name, value in logits.items()}


def view(logits: torch.Tensor, labels: torch.Tensor = LABELS) -> View:
    return View(logits=(logits,), labels=(labels,), inputs_mask=MASK[: len(logits)])


def value(objective: Objective, student: View, answers, counts, **more) -> float:
    sums = objective.numerators(student, answers, TrainProgress(), **more)
    return float(objective.total(sums, objective.denominators(*counts), TrainProgress()))


COUNTS = (LABELS.numpy(), [np.array(LENGTHS)])


@pytest.mark.parametrize(
    ("task_type", "labels"),
    [
        ("sequence-classification", [0, -1, 1]),
        ("multi-label", [[0, -1], [-1, -1], [1, 1]]),
        ("regression", [[-5.0], [math.nan], [0.0]]),
    ],
)
def test_the_hard_loss_is_divided_by_the_rows_that_have_a_label(task_type, labels):
    config = rb.DistillationConfig(kd_loss_weight=0, hard_label_weight=1)
    objective = Objective(config, {}, kind=TASK_TYPES[task_type])
    assert objective.denominators(np.array(labels)) == {"hard": 2.0}


def test_numbers_by_hand():
    # Student even, teacher 3 : 1 in the first class of two; one of two rows has a label.
    config = rb.DistillationConfig(temperature=1, kd_loss_weight=2, hard_label_weight=3)
    student = View(logits=(torch.zeros(2, 2),), labels=(torch.tensor([1, -1]),))
    teacher = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    counts = [np.array([1, -1])]
    objective = Objective(config, {"a": 1.0})
    # Cross-entropy with an even student is log 2 whatever the teacher says.
    assert value(objective, student, soft(a=teacher), counts) == pytest.approx(5 * math.log(2))
    kl = Objective(config.model_copy(update={"kd_loss": "kl"}), {"a": 1.0})
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    got = value(kl, student, soft(a=teacher), counts)
    assert got == pytest.approx(2 * expected + 3 * math.log(2))


def test_agreement_counts_rows_of_the_same_class_and_only_where_metrics_are_reported():
    objective = Objective(rb.DistillationConfig(), {"a": 1.0, "b": 1.0})
    logits = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 2]])
    a = torch.tensor([[3.0, 0, 0], [3, 0, 0], [0, 0, 9], [0, 0, 1]])
    b = torch.tensor([[0.0, 1, 0], [0, 4, 0], [0, 1, 0], [0, 0, 1]])
    student, labels = view(logits, torch.tensor([0, 0, -1, 0])), np.array([0, 0, -1, 0])
    reported = TrainProgress(reported=True)
    sums = objective.numerators(student, soft(a=a, b=b), reported)
    # The mixture's classes are 0, 1, 2, 2.
    assert sums["agreement"] == 3
    floats = {name: float(each) for name, each in sums.items()}
    counts = objective.denominators(labels)
    assert objective.metrics(floats, counts, reported)["agreement"] == 0.75
    plain = objective.numerators(student, soft(a=a, b=b), TrainProgress())
    assert set(plain) == set(sums) - {"agreement"}
    assert torch.equal(plain["kd"], sums["kd"])
    numbers = Objective(rb.DistillationConfig(), {"a": 1.0}, kind=TASK_TYPES["regression"])
    one = torch.zeros(2, 1)
    of_numbers = numbers.numerators(view(one, torch.zeros(2, 1)), soft(a=one), reported)
    assert "agreement" not in of_numbers


def test_weights_one_and_nothing_are_one_teacher():
    config = rb.DistillationConfig(temperature=3)
    student, a, b = drawn(6, 3), drawn(6, 3, seed=1), drawn(6, 3, seed=2)
    both = Objective(config, {"a": 1.0, "b": 0.0})
    alone = Objective(config, {"a": 1.0})
    assert value(both, view(student), soft(a=a, b=b), COUNTS) == pytest.approx(
        value(alone, view(student), soft(a=a), COUNTS), abs=1e-7
    )


@pytest.mark.parametrize("kd_loss", ["ce", "kl", "reverse_kl", "mse", "jsd", "logit_std"])
def test_a_teacher_of_no_weight_may_have_said_anything(kd_loss):
    config = rb.DistillationConfig(temperature=3, kd_loss=kd_loss, mixture="sum_losses")
    student, a = drawn(6, 3).requires_grad_(), drawn(6, 3, seed=1)
    nonsense = torch.tensor([math.nan, math.inf, -math.inf]).expand(6, 3)
    found = []
    for teachers, answers in (
        ({"a": 1.0, "b": 0.0}, soft(a=a, b=nonsense)),
        ({"a": 1.0}, soft(a=a)),
    ):
        objective = Objective(config, teachers)
        sums = objective.numerators(view(student), answers, TrainProgress())
        loss = objective.total(sums, objective.denominators(*COUNTS), TrainProgress())
        found.append((loss.detach(), torch.autograd.grad(loss, student)[0]))
    torch.testing.assert_close(found[0], found[1])


def test_a_student_like_its_teacher_has_no_gradient():
    config = rb.DistillationConfig(temperature=3, kd_loss="kl")
    logits = drawn(6, 3).requires_grad_()
    objective = Objective(config, {"a": 1.0})
    sums = objective.numerators(view(logits), soft(a=logits.detach()), TrainProgress())
    loss = objective.total(sums, objective.denominators(*COUNTS), TrainProgress())
    assert float(loss.detach()) == pytest.approx(0, abs=1e-7)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-7, rtol=0)


def test_probability_shift_acts_on_the_mixture_and_leaves_the_labels_as_they_were():
    config = rb.DistillationConfig(temperature=1, probability_shift=True, kd_loss="mse")
    a = torch.tensor([[2.0, 0.0, 1.0]])
    kept = a.clone()
    student = View(logits=(torch.tensor([[0.0, 2.0, 1.0]]),), labels=(torch.tensor([1]),))
    counts = [np.array([1])]
    assert value(Objective(config, {"a": 1.0}), student, soft(a=a), counts) == 0
    assert torch.equal(a, kept)


def test_routed_rows_learn_from_their_teacher():
    config = rb.DistillationConfig(temperature=2, mixture="route")
    student, a, b = drawn(6, 3), drawn(6, 3, seed=1), drawn(6, 3, seed=2)
    route = torch.tensor([0, 1, 1, 0, 1, 0])
    mixed = torch.where(route[:, None] == 0, a, b)
    got = value(
        Objective(config, {"a": 1.0, "b": 1.0}),
        view(student),
        soft(a=a, b=b),
        COUNTS,
        examples=ExampleInputs(route=route),
    )
    alone = Objective(rb.DistillationConfig(temperature=2), {"a": 1.0})
    assert got == pytest.approx(value(alone, view(student), soft(a=mixed), COUNTS), abs=1e-7)


@pytest.mark.parametrize("mixture", ["mean_probs", "softmax_neg_ce", "softmax_max_prob"])
@pytest.mark.parametrize("kd_loss", ["mse", "bce"])
def test_means_of_probabilities_are_refused_where_the_size_of_logits_counts(mixture, kd_loss):
    config = rb.DistillationConfig(mixture=mixture, kd_loss=kd_loss)
    with pytest.raises(ConfigError, match=rf"mixture.*kd_loss '{kd_loss}'.*'{mixture}'"):
        Objective(config, {"a": 1.0, "b": 1.0})


def match_of(loss: str, dtype: str = "float32", weight: float = 1.0) -> TaskMatch:
    options = {"num_relation_heads": 2} if "v2" in loss else {}
    built = match_loss(loss, options)
    layer = (1, 2) if built.num_layers != 1 else 1
    spec = MatchSpec(
        layer_T=layer,
        layer_S=layer,
        feature=built.features[0],
        loss=loss,
        weight=weight,
        options=options,
    )
    teachers = {"a": GEOMETRY}
    (match,) = plan_matches([spec], "t", teachers, ["a"], GEOMETRY, dtype)
    return match


def features_of(match: TaskMatch, seed: int) -> list[torch.Tensor]:
    assert isinstance(match.spec, MatchSpec)
    found = []
    for layer in match.spec.student_layers:
        if match.spec.feature == "attention":
            scores = drawn(6, HEADS, LENGTH, LENGTH, seed=seed + layer)
            found.append(scores.masked_fill(MASK[:, None, None, :] == 0, -math.inf).softmax(-1))
        elif match.spec.feature == "hidden":
            found.append(drawn(6, LENGTH, 8, seed=seed + layer))
        else:
            found.append(drawn(6, HEADS, LENGTH, 4, seed=seed + layer))
    return found


def direct(match: TaskMatch, student, teacher) -> float:
    assert isinstance(match.spec, MatchSpec)
    loss = match.spec.build_loss()
    numerator, denominator = loss.loss(student, MASK, loss.teacher_statistic(teacher, MASK))
    return float(numerator.sum() / denominator.sum())


def through_payload(match: TaskMatch, student, teacher, parts=None) -> float:
    """The loss of the whole batch, in parts, from what the teacher ships."""
    objective = Objective(
        rb.DistillationConfig(kd_loss_weight=0, matches="x"), {"a": 1.0}, matches=[match]
    )
    whole = pack_features(match.signal, teacher, MASK)[0]
    parts = parts or [np.arange(6)]
    counts = LABELS.numpy(), [np.array(LENGTHS)[part] for part in parts]
    denominators = objective.denominators(*counts)
    total = torch.zeros(())
    for part in parts:
        rows = torch.from_numpy(part)
        label = tensors_of(whole.take(part), match.signal)
        part_view = View(
            logits=(torch.zeros(len(part), 3),), labels=(LABELS[rows],), inputs_mask=MASK[rows]
        )
        sums = objective.numerators(
            part_view,
            {"a": {match.signal.name: label}},
            TrainProgress(),
            features={match.term: [each[rows] for each in student]},
        )
        total = total + objective.total(sums, denominators, TrainProgress())
    return float(total)


ALL = sorted(MATCH_LOSSES)


@pytest.mark.parametrize("loss", ALL)
def test_reduced_payloads_give_the_loss_of_full_tensors(loss):
    match = match_of(loss)
    student, teacher = features_of(match, 0), features_of(match, 50)
    got = through_payload(match, student, teacher)
    assert got == pytest.approx(direct(match, student, teacher), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("loss", ALL)
def test_bfloat16_payloads_are_within_two_percent(loss):
    match = match_of(loss, dtype="bfloat16")
    student, teacher = features_of(match, 0), features_of(match, 50)
    got = through_payload(match, student, teacher)
    assert got == pytest.approx(direct(match, student, teacher), rel=2e-2, abs=1e-3)


@pytest.mark.parametrize("loss", sorted(set(ALL) - OF_A_BATCH))
@pytest.mark.parametrize(
    "parts",
    [
        [np.array([0, 1, 2]), np.array([3, 4, 5])],
        [np.array([0, 2, 4, 1, 3]), np.array([5])],
        [np.arange(6), np.array([], np.int64)],
    ],
    ids=["two halves", "uneven", "one empty"],
)
def test_ranks_and_micro_batches_change_nothing(loss, parts):
    match = match_of(loss)
    student, teacher = features_of(match, 0), features_of(match, 50)
    whole = through_payload(match, student, teacher)
    assert through_payload(match, student, teacher, parts) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("loss", sorted(OF_A_BATCH - {"emd"}))
def test_losses_between_examples_are_the_weighted_mean_of_their_passes(loss):
    match = match_of(loss)
    student, teacher = features_of(match, 0), features_of(match, 50)
    halves = [np.array([0, 1, 2]), np.array([3, 4, 5])]
    each = [_of_part(match, student, teacher, half) for half in halves]
    got = through_payload(match, student, teacher, halves)
    assert got == pytest.approx(sum(each) / 2, rel=1e-5)


def _of_part(match: TaskMatch, student, teacher, part: np.ndarray) -> float:
    assert isinstance(match.spec, MatchSpec)
    loss, rows = match.spec.build_loss(), torch.from_numpy(part)
    statistic = loss.teacher_statistic([t[rows] for t in teacher], MASK[rows])
    numerator, denominator = loss.loss([s[rows] for s in student], MASK[rows], statistic)
    return float(numerator.sum() / denominator.sum())


def test_masked_batches_give_nothing_with_a_graph():
    config = rb.DistillationConfig(kd_loss_weight=0, hard_label_weight=1)
    logits = drawn(6, 3).requires_grad_()
    student = View(logits=(logits,), labels=(torch.full((6,), -1),), inputs_mask=MASK)
    objective = Objective(config, {"a": 1.0})
    counts = np.full(6, -1), [np.array(LENGTHS)]
    sums = objective.numerators(student, {}, TrainProgress())
    loss = objective.total(sums, objective.denominators(*counts), TrainProgress())
    assert float(loss.detach()) == 0
    assert torch.equal(torch.autograd.grad(loss, logits)[0], torch.zeros(6, 3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_top_k_labels_come_back_as_they_were_kept(dtype, k):
    logits = drawn(5, 7) * 4
    signal = Signal(dtype=dtype, top_k=k, temperatures=(1.0, 4.0))
    top_k = tensors_of(pack_rows(logits, None, signal)[0], signal)
    stored = logits.to(getattr(torch, dtype)).float()
    assert isinstance(top_k, TopK)
    values = stored.topk(k, dim=-1).values
    torch.testing.assert_close(top_k.values, values)
    assert torch.equal(stored.gather(-1, top_k.indices), values)
    for temperature in signal.temperatures:
        expected = torch.logsumexp(stored / temperature, dim=-1)
        torch.testing.assert_close(top_k.logsumexp_at(temperature), expected)


def test_as_many_top_logits_as_classes_are_the_dense_loss():
    config = rb.DistillationConfig(temperature=2)
    student, a = drawn(6, 3), drawn(6, 3, seed=1)
    signal = Signal(top_k=3, temperatures=(2.0,))
    objective = Objective(config, {"a": 1.0}, logits=signal)
    label = tensors_of(pack_rows(a, None, signal)[0], signal)
    dense = value(Objective(config, {"a": 1.0}), view(student), soft(a=a), COUNTS)
    got = value(objective, view(student), {"a": {signal.name: label}}, COUNTS)
    assert got == pytest.approx(dense, rel=1e-6)
    fewer = Signal(top_k=2, temperatures=(2.0,))
    label = tensors_of(pack_rows(a, None, fewer)[0], fewer)
    objective = Objective(config, {"a": 1.0}, logits=fewer)
    assert value(objective, view(student), {"a": {fewer.name: label}}, COUNTS) < dense


@pytest.mark.parametrize("mixture", ["route", "sum_losses"])
def test_a_teacher_of_no_weight_may_have_said_anything_in_its_largest_logits(mixture):
    # The second teacher gives all its probability to a class that the student masks.
    signal = Signal(top_k=2, temperatures=(2.0,))
    config = rb.DistillationConfig(temperature=2, mixture=mixture, kd_loss="kl")
    student, a = drawn(6, 3), drawn(6, 3, seed=1)
    a[:, 2] = student[:, 2] = -50.0
    student[:, 2] = -math.inf
    b = torch.tensor([-90.0, -90.0, 90.0]).expand(6, 3)
    weights = {"a": 1.0, "b": 1.0 if mixture == "route" else 0.0}
    kept = {
        name: {signal.name: tensors_of(pack_rows(logits, None, signal)[0], signal)}
        for name, logits in (("a", a), ("b", b))
    }
    leaf = student.requires_grad_()
    found = []
    for teachers in (weights, {"a": 1.0}):
        objective = Objective(
            config if len(teachers) > 1 else config.model_copy(update={"mixture": "mean_logits"}),
            teachers,
            logits=signal,
        )
        route = torch.zeros(6, dtype=torch.int64)
        sums = objective.numerators(view(leaf), kept, TrainProgress(), ExampleInputs(route=route))
        loss = objective.total(sums, objective.denominators(*COUNTS), TrainProgress())
        found.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    assert found[0][0].isfinite()
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kd_loss": "mse"}, "no form over the largest logits"),
        ({"probability_shift": True}, "true class"),
        (
            {
                "temperature_scheduler": "cwsm",
                "temperature_scheduler_options": {"beta": 1},
            },
            "temperature for each row",
        ),
        ({}, "mixture 'mean_logits' needs all logits"),
    ],
)
def test_what_top_k_logits_cannot_do_is_refused_at_once(changes, message):
    with pytest.raises(ConfigError, match=message):
        Objective(
            rb.DistillationConfig(**changes),
            {"a": 1.0, "b": 1.0},
            logits=Signal(top_k=2, temperatures=(4.0,)),
        )


def test_matches_have_weights_and_names():
    match = match_of("hidden_mse", weight=0.25)
    objective = Objective(rb.DistillationConfig(), {"a": 1.0}, matches=[match])
    assert objective.terms == ("kd", "match/hidden_hidden_mse_1_1")
    assert objective.weights(TrainProgress())["match/hidden_hidden_mse_1_1"] == 0.25


@pytest.mark.parametrize("mixture", ["mean_logits", "mean_probs", "sum_losses", "min_ce"])
def test_without_a_dropped_teacher_the_mixture_is_that_of_the_others(mixture):
    config = rb.DistillationConfig(temperature=2, mixture=mixture)
    weights = {"a": 1.0, "b": 2.0, "c": 3.0}
    answers = soft(**{name: drawn(6, CLASSES, seed=n) for n, name in enumerate(weights)})
    left = {name: answer for name, answer in answers.items() if name != "b"}
    student = view(drawn(6, CLASSES, seed=9))
    dropped = value(Objective(config, weights), student, left, COUNTS)
    others = {name: weight for name, weight in weights.items() if name != "b"}
    alone = value(Objective(config, others), student, left, COUNTS)
    # Losses that are added up keep their sum of weights.
    scale = sum(weights.values()) / sum(others.values()) if mixture == "sum_losses" else 1.0
    assert dropped == pytest.approx(alone * scale)
    assert dropped != pytest.approx(value(Objective(config, weights), student, answers, COUNTS))
    with pytest.raises(TeacherError, match="a, b, c: all of them were dropped"):
        value(Objective(config, weights), student, {}, COUNTS)
