"""Settings of the objective reach its loss: each changes the number as a calculation by hand."""

import math

import numpy as np
import pytest
import torch

import raybrew as rb
from raybrew.data.payload import Signal
from raybrew.errors import ConfigError
from raybrew.labels.logits import pack_rows, tensors_of
from raybrew.losses.mixture import RowInputs
from raybrew.matches.plan import plan_matches
from raybrew.matches.presets import ModelGeometry
from raybrew.matches.spec import MatchSpec
from raybrew.objective import Objective, TrainProgress
from raybrew.objective.rows import ExampleInputs
from raybrew.tasks import TASK_TYPES
from raybrew.tasks.task_type import View

LABELS = torch.tensor([0, 2, -1, 1, 1, 0])
COUNTS = (LABELS.numpy(), [np.array([6, 3, 1, 4, 2, 5])])
KEYS = torch.arange(6) * 7919
ROUTE = torch.tensor([0, 1, 1, 0, 1, 0])


def drawn(seed: int, classes: int = 3) -> torch.Tensor:
    return torch.randn(6, classes, generator=torch.Generator().manual_seed(seed))


def loss_of(objective: Objective, student: torch.Tensor, answers, epoch: int = 0, **view) -> float:
    seen = View(**{"logits": (student,), "labels": (LABELS,), **view})
    position = TrainProgress(epoch=epoch)
    sums = objective.numerators(seen, answers, position, ExampleInputs(KEYS, ROUTE))
    return float(objective.total(sums, objective.denominators(*COUNTS), position))


def dense(**logits: torch.Tensor):
    return {name: {Signal().name: each} for name, each in logits.items()}


def test_scale_t2_multiplies_the_loss_by_the_square_of_the_temperature():
    losses = [
        loss_of(
            Objective(rb.DistillationConfig(temperature=3, kd_loss="kl", scale_t2=on), {"a": 1.0}),
            drawn(0),
            dense(a=drawn(1)),
        )
        for on in (False, True)
    ]
    assert losses[0] > 0.01
    assert losses[1] == pytest.approx(9 * losses[0])


@pytest.mark.parametrize("mixture", ["sum_losses", "random", "route"])
@pytest.mark.parametrize("teachers", [{"a": 0.25}, {"a": 0.25, "b": 2.0}], ids=["one", "two"])
def test_all_classes_as_top_k_labels_are_the_dense_loss_by_any_mixture(mixture, teachers):
    config = rb.DistillationConfig(temperature=2, kd_loss="kl", mixture=mixture)
    signal = Signal(top_k=3, temperatures=(2.0,))
    logits = {name: drawn(seed) for seed, name in enumerate(teachers, start=1)}
    kept = {
        name: {signal.name: tensors_of(pack_rows(each, None, signal)[0], signal)}
        for name, each in logits.items()
    }
    student = drawn(0)
    route = ROUTE if len(teachers) > 1 else torch.zeros(6, dtype=torch.int64)
    found = []
    for objective, answers in (
        (Objective(config, teachers), dense(**logits)),
        (Objective(config, teachers, logits=signal), kept),
    ):
        view = View(logits=(student,), labels=(LABELS,))
        sums = objective.numerators(view, answers, TrainProgress(), ExampleInputs(KEYS, route))
        found.append(float(objective.total(sums, objective.denominators(*COUNTS), TrainProgress())))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    if mixture == "sum_losses":
        plain = rb.DistillationConfig(temperature=2, kd_loss="kl")
        each = {n: loss_of(Objective(plain, {n: 1.0}), student, dense(**logits)) for n in logits}
        assert found[0] == pytest.approx(sum(w * each[n] for n, w in teachers.items()), rel=1e-5)


@pytest.mark.parametrize(
    ("mixture", "teachers", "refused"),
    [
        ("mean_logits", 1, False),
        ("min_ce", 1, False),
        ("mean_logits", 2, True),
        ("mean_probs", 2, True),
        ("min_ce", 2, True),
        ("ca_mkd", 2, True),
        # Its weight comes from the cross-entropy of all classes, also of a teacher alone.
        ("mt_bert", 1, True),
        ("mt_bert", 2, True),
        ("sum_losses", 1, False),
        ("sum_losses", 2, False),
        ("random", 2, False),
        ("route", 2, False),
    ],
)
def test_mixtures_that_need_all_logits_are_refused_with_top_k_labels(mixture, teachers, refused):
    config = rb.DistillationConfig(mixture=mixture)
    weights = dict(list({"a": 1.0, "b": 1.0}.items())[:teachers])

    def build() -> Objective:
        return Objective(config, weights, logits=Signal(top_k=2, temperatures=(4.0,)))

    if not refused:
        assert build().terms == ("kd",)
        return
    with pytest.raises(ConfigError, match=f"mixture '{mixture}' needs all logits"):
        build()


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"kd_loss": "ce"}, r"kd_loss 'ce' \(leave it out for bce\)"),
        ({"kd_loss": "dkd"}, "kd_loss 'dkd'"),
        ({"mixture": "min_ce"}, "mixture 'min_ce'"),
        (
            {
                "mixture": "softmax_max_prob",
                "mixture_options": {"combination": "mean_logits"},
            },
            "mixture 'softmax_max_prob'",
        ),
        ({"probability_shift": True}, "probability_shift"),
    ],
)
def test_what_needs_one_true_class_is_refused_for_rows_of_several(changes, wrong):
    kind = TASK_TYPES["multi-label"]
    with pytest.raises(ConfigError, match=rf"what suits multi-label.*{wrong}"):
        Objective(rb.DistillationConfig(**changes), {"a": 1.0, "b": 1.0}, kind=kind)
    assert Objective(rb.DistillationConfig(), {"a": 1.0, "b": 1.0}, kind=kind).terms == ("kd",)


def test_losses_of_the_adaptor_are_means_over_the_labelled_rows():
    config = rb.DistillationConfig(kd_loss_weight=0, hard_label_weight=3)
    objective = Objective(config, {})
    losses = (torch.tensor(0.5), torch.tensor([0.25, 0.75]))
    # Five of six rows have a label, two of them the class 0: (0.5 + 0.5) · 5 ÷ 5, times 3.
    assert loss_of(objective, drawn(0), {}, losses=losses) == pytest.approx(3.0)
    # In two passes of 2 and 4 rows it is the same where both have that mean.
    total = 0.0
    for part in (slice(0, 2), slice(2, 6)):
        view = View(logits=(drawn(0)[part],), labels=(LABELS[part],), losses=losses)
        sums = objective.numerators(view, {}, TrainProgress())
        total += float(objective.total(sums, objective.denominators(*COUNTS), TrainProgress()))
    assert total == pytest.approx(3.0)


def test_what_the_ensemble_answers_is_what_the_student_learns_at_that_point_of_the_run():
    config = rb.DistillationConfig(kd_loss="mse", mixture="random", temperature=1)
    objective = Objective(config, {"a": 1.0, "b": 1.0})
    a, b = drawn(1), drawn(2)
    targets = []
    for epoch in range(6):
        target = objective.target(
            torch.stack([a, b]), RowInputs(LABELS, row_keys=KEYS, epoch=epoch)
        )
        assert all(
            torch.equal(t, x) or torch.equal(t, y) for t, x, y in zip(target, a, b, strict=True)
        )
        assert loss_of(objective, target, dense(a=a, b=b), epoch=epoch) == pytest.approx(0)
        targets.append(target)
    assert any(not torch.equal(targets[0], other) for other in targets[1:])


def test_nothing_to_learn_from_is_refused_and_matches_to_come_are_not():
    nothing = rb.DistillationConfig(kd_loss_weight=0, hard_label_weight=0)
    with pytest.raises(ConfigError, match="expected kd_loss_weight or hard_label_weight above 0"):
        Objective(nothing, {"a": 1.0})
    to_come = nothing.model_copy(update={"matches": "x"})
    assert Objective(to_come, {"a": 1.0}).terms == ()
    # Without any settings a student learns from labels alone.
    assert Objective(None, {}).weights(TrainProgress()) == {"hard": 1.0}


def test_a_route_and_labels_are_needed_by_terms_that_have_a_weight():
    def objective(**changes) -> Objective:
        return Objective(rb.DistillationConfig(**changes), {"a": 1.0, "b": 1.0})

    assert objective(mixture="route").needs_route
    assert not objective(mixture="mean_logits").needs_route
    labels_alone = objective(mixture="route", kd_loss_weight=0, hard_label_weight=1)
    assert not labels_alone.needs_route
    assert labels_alone.needs_labels == ("hard_label_weight",)
    assert objective(mixture="min_ce").needs_labels == ("mixture min_ce",)
    assert objective(probability_shift=True, kd_loss="dkd").needs_labels == (
        "probability_shift",
        "kd_loss dkd",
    )
    assert objective().needs_labels == ()


def test_passes_of_a_batch_change_no_denominator():
    geometry = ModelGeometry(num_layers=2, hidden_size=8, num_heads=2)
    spec = MatchSpec(layer_T=1, layer_S=1, feature="hidden", loss="hidden_mse")
    matches = plan_matches([spec], "t", {"a": geometry}, ["a"], geometry, "float32")
    objective = Objective(rb.DistillationConfig(kd_loss_weight=0), {"a": 1.0}, matches=matches)
    whole = objective.denominators(np.array([0, 1]), [np.array([2, 3])])
    # Real tokens times the hidden size.
    assert list(whole.values()) == [5 * 8]
    parts = [np.array([2]), np.array([3])]
    assert objective.denominators(np.array([0, 1]), parts) == whole


def test_options_of_the_loss_the_mixture_and_the_schedules_reach_them():
    student, answers = drawn(0), dense(a=drawn(1), b=drawn(2))

    def loss(**changes) -> float:
        config = rb.DistillationConfig(**{"temperature": 1, "kd_loss": "kl", **changes})
        return loss_of(Objective(config, {"a": 1.0, "b": 1.0}), student, answers)

    # A skew of almost 0 is the divergence itself, and a weight that looks at nothing is a mean.
    skewed = loss(kd_loss="skew_kl", kd_loss_options={"skew": 1e-6})
    assert skewed == pytest.approx(loss(), rel=1e-4)
    assert skewed > 1.1 * loss(kd_loss="skew_kl", kd_loss_options={"skew": 0.5})
    softmax = loss(mixture="softmax_max_prob", mixture_options={"alpha": 0})
    assert softmax == pytest.approx(loss(mixture="mean_probs"))
    assert softmax != pytest.approx(loss(mixture="softmax_max_prob"))
    config = rb.DistillationConfig(
        kd_loss_weight=8,
        kd_loss_weight_scheduler="annealed",
        kd_loss_weight_scheduler_options={"start": 0.5, "end": 0, "until": 0.5},
    )
    weights = [
        Objective(config, {"a": 1.0}).weights(TrainProgress(progress)) for progress in (0, 0.25)
    ]
    assert weights == [{"kd": pytest.approx(4.0)}, {"kd": pytest.approx(2.0)}]


def test_figures_are_the_sums_over_ranks_divided_and_weighed():
    config = rb.DistillationConfig(
        kd_loss_weight=2,
        hard_label_weight=4,
        hard_label_weight_scheduler="linear_decay",
    )
    objective = Objective(config, {"a": 1.0})
    got = objective.metrics(
        {"kd": 6.0, "hard": 5.0}, {"kd": 12.0, "hard": 10.0}, TrainProgress(progress=0.25)
    )
    # 6 ÷ 12 and 5 ÷ 10; 2 · 0.5 + 4 · (1 − 0.25) · 0.5.
    assert got == pytest.approx({"kd": 0.5, "hard": 0.5, "loss": 2.5})
    # No row with a label: 0 ÷ 0 is 0.
    none = objective.metrics({"kd": 6.0, "hard": 0.0}, {"kd": 12.0, "hard": 0.0}, TrainProgress())
    assert none == pytest.approx({"kd": 0.5, "hard": 0.0, "loss": 1.0})
    assert math.isfinite(none["loss"])
