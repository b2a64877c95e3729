import hashlib
import math
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raybrew.errors import ConfigError, LabelError
from raybrew.losses.kd import KD_LOSSES, make_kd_loss
from raybrew.losses.mixture import (
    MIXTURES,
    RowInputs,
    combine,
    make_mixture,
    probability_shift,
    teacher_weights,
)

# Mixtures of teachers: weights by hand, choices by name, and what happens when one is missing.

torch.set_num_threads(1)

EQUAL = (1.0, 1.0)
# True-class probabilities ½ and ⅛, so the cross-entropies with label 0 are ln 2 and 3 ln 2.
TWO = torch.tensor([[[0.5, 0.25, 0.25]], [[0.125, 0.125, 0.75]]], dtype=torch.float64).log()
LABEL = torch.tensor([0])
LN2 = math.log(2)
ENTROPY = [1.5 * LN2, 0.25 * 3 * LN2 - 0.75 * math.log(0.75)]


def stacked(teachers: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(teachers, *shape, generator=generator, dtype=torch.float64) * 2


def softmax(scores: list[float]) -> list[float]:
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def weights_of(mixture, logits, static, labels=None, **rows) -> Tensor:
    return teacher_weights(mixture, logits, static, RowInputs(labels, **rows))


def keys(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint64)


class TestWeightsByHand:
    @pytest.mark.parametrize(
        ("name", "options", "expected"),
        [
            ("mean_logits", {}, [0.75, 0.25]),
            ("mean_probs", {}, [0.75, 0.25]),
            ("sum_losses", {}, [3.0, 1.0]),
            ("softmax_neg_ce", {}, [0.8, 0.2]),  # ½ : ⅛
            ("softmax_neg_ce", {"alpha": 2.0}, [16 / 17, 1 / 17]),
            ("softmax_neg_entropy", {}, softmax([-value for value in ENTROPY])),
            ("softmax_max_prob", {"alpha": 4}, softmax([2.0, 3.0])),
            ("ca_mkd", {}, [0.8, 0.2]),  # e^CE = 2 : 8
            ("mt_bert", {}, [1 / (1 + LN2), 1 / (1 + 3 * LN2)]),
            (
                "mt_bert",
                {"combination": "mean_probs"},
                [(1 + 3 * LN2) / (2 + 4 * LN2), (1 + LN2) / (2 + 4 * LN2)],
            ),
            ("min_ce", {}, [1.0, 0.0]),
        ],
    )
    def test_number(self, name, options, expected):
        weights = weights_of(make_mixture(name, options), TWO, (3.0, 1.0), LABEL)
        assert weights.flatten().tolist() == pytest.approx(expected, abs=1e-12)

    def test_ca_mkd_of_three(self):
        logits = torch.cat([TWO, TWO[:1]])  # e^CE = 2, 8, 2
        weights = weights_of(make_mixture("ca_mkd"), logits, (1, 1, 1), LABEL)
        assert weights.flatten().tolist() == pytest.approx([5 / 12, 2 / 12, 5 / 12])

    def test_route(self):
        route = torch.tensor([[1, 0, 2]])
        weights = weights_of(make_mixture("route"), stacked(3, 1, 3, 4), (1, 1, 1), route=route)
        assert weights.argmax(0).tolist() == route.tolist()
        assert weights.sum(0).tolist() == [[1, 1, 1]]
        assert weights.count_nonzero() == 3

    def test_rows_without_a_label_take_the_static_weights(self):
        logits = TWO.expand(2, 2, 3)
        for name in ("softmax_neg_ce", "min_ce", "ca_mkd", "mt_bert"):
            weights = weights_of(make_mixture(name), logits, (1.0, 3.0), torch.tensor([0, -100]))
            assert weights[:, 1].tolist() == [0.25, 0.75]
            assert weights[0, 0] > 0.5

    def test_one_teacher_alone(self):
        logits, labels = stacked(1, 3, 4), torch.tensor([0, 1, -1])
        route, row_keys = torch.zeros(3, dtype=torch.int64), keys(1, 2, 3)
        for name in MIXTURES:
            if name == "mt_bert":
                continue  # under sum_losses its weight is not 1
            weights = weights_of(
                make_mixture(name), logits, (1.0,), labels, route=route, row_keys=row_keys
            )
            assert weights.tolist() == [[1.0, 1.0, 1.0]]


class TestUnavailable:
    AVAILABLE = torch.tensor([[True, True], [True, False], [True, False]])

    @pytest.mark.parametrize("name", sorted(set(MIXTURES) - {"route", "mt_bert"}))
    def test_the_others_make_up_for_it_whatever_it_left_behind(self, name):
        logits = stacked(3, 2, 4)
        logits[1:, 1] = math.nan
        mixture = make_mixture(name)
        weights = weights_of(
            mixture,
            logits,
            (1.0, 1.0, 2.0),
            torch.tensor([0, 1]),
            row_keys=keys(5, 6),
            available=self.AVAILABLE,
        )
        total = 4.0 if name == "sum_losses" else 1.0
        torch.testing.assert_close(weights.sum(0), torch.full((2,), total, dtype=torch.float64))
        assert weights[:, 1].tolist() == pytest.approx([total, 0, 0])
        if not mixture.sums_losses:
            target = combine(mixture, logits, weights, 2.0)
            probs = (target[1] / 2).softmax(-1)
            torch.testing.assert_close(probs, (logits[0, 1] / 2).softmax(-1))

    def test_two_of_three(self):
        available = torch.tensor([[True], [False], [True]])
        logits = torch.cat([TWO, TWO[1:]])
        weights = weights_of(
            make_mixture("sum_losses"), logits, (1.0, 2.0, 3.0), available=available
        )
        assert weights.flatten().tolist() == [1.5, 0.0, 4.5]
        weights = weights_of(make_mixture("ca_mkd"), logits, (1, 1, 1), LABEL, available=available)
        assert weights.flatten().tolist() == pytest.approx([0.8, 0.0, 0.2])
        weights = weights_of(make_mixture("mt_bert"), logits, (1, 1, 1), LABEL, available=available)
        expected = [1.5 / (1 + LN2), 0.0, 1.5 / (1 + 3 * LN2)]
        assert weights.flatten().tolist() == pytest.approx(expected)

    def test_a_row_without_any_teacher_is_an_error(self):
        available = torch.tensor([[True, False], [True, False]])
        for name in ("mean_logits", "sum_losses", "min_ce", "ca_mkd", "random", "softmax_max_prob"):
            with pytest.raises(
                LabelError, match=r"No teacher for 1 of 2 rows \(first at \[\[1\]\]\)"
            ):
                weights_of(
                    make_mixture(name),
                    stacked(2, 2, 3),
                    EQUAL,
                    torch.tensor([0, 1]),
                    row_keys=keys(1, 2),
                    available=available,
                )

    @pytest.mark.parametrize("bad", [-1, 2])
    def test_a_route_to_nowhere_is_an_error(self, bad):
        with pytest.raises(LabelError, match=r"a route in 0..1"):
            weights_of(make_mixture("route"), stacked(2, 2, 3), EQUAL, route=torch.tensor([0, bad]))
        missing = torch.tensor([[True, True], [True, False]])
        with pytest.raises(LabelError, match="No teacher for 1 of 2"):
            weights_of(
                make_mixture("route"),
                stacked(2, 2, 3),
                EQUAL,
                route=torch.tensor([1, 1]),
                available=missing,
            )


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), teachers=st.integers(1, 4))
@pytest.mark.parametrize("name", sorted(set(MIXTURES) - {"sum_losses", "mt_bert"}))
def test_weights_are_shares_and_follow_their_rows(name, seed, teachers):
    generator = torch.Generator().manual_seed(seed)
    logits = stacked(teachers, 5, 4, seed=seed)
    labels = torch.randint(-1, 4, (5,), generator=generator)
    route = torch.randint(0, teachers, (5,), generator=generator)
    row_keys = torch.randint(0, 2**62, (5,), generator=generator)
    static = torch.rand(teachers, generator=generator) + 0.1
    mixture = make_mixture(name)

    def weigh(order: Tensor) -> Tensor:
        return weights_of(
            mixture,
            logits[:, order],
            static,
            labels[order],
            route=route[order],
            row_keys=row_keys[order],
        )

    weights = weigh(torch.arange(5))
    torch.testing.assert_close(weights.sum(0), torch.ones(5, dtype=torch.float64))
    assert weights.min() >= 0
    order = torch.randperm(5, generator=generator)
    torch.testing.assert_close(weigh(order), weights[:, order])


class TestByName:
    def test_the_words_of_the_methods(self):
        words = "mean_logits mean_probs min_ce ca_mkd mt_bert random route"
        words += " softmax_neg_ce softmax_neg_entropy softmax_max_prob sum_losses"
        assert sorted(MIXTURES) == sorted(words.split())
        assert {name for name in MIXTURES if MIXTURES[name].needs_labels} == {
            "min_ce",
            "ca_mkd",
            "mt_bert",
            "softmax_neg_ce",
        }
        assert [name for name in MIXTURES if MIXTURES[name].needs("route")] == ["route"]
        assert [name for name in MIXTURES if MIXTURES[name].needs("row_keys")] == ["random"]

    def test_choices_are_independent(self):
        mixture = make_mixture(
            "mean_logits", {"weighting": "softmax", "score": "max_prob", "alpha": 3, "seed": 7}
        )
        assert (mixture.combination, mixture.weighting) == ("mean_logits", "softmax")
        assert (mixture.score, mixture.alpha, mixture.seed) == ("max_prob", 3, 7)
        assert pickle.loads(pickle.dumps(mixture)) == mixture
        assert MIXTURES["mean_logits"].weighting == "fixed"

    def test_mistakes(self):
        with pytest.raises(ConfigError, match="mean 'mean_logits'"):
            make_mixture("mean_logit")
        with pytest.raises(
            ConfigError, match=r"Unknown weighting of teachers 'softmx'.*mean 'softmax'"
        ):
            make_mixture("mean_logits", {"weighting": "softmx"})
        with pytest.raises(ConfigError, match="option of Mixture 'random' 'sed'"):
            make_mixture("random", {"sed": 1})
        with pytest.raises(ConfigError, match="'seed': expected an integer"):
            make_mixture("random", {"seed": 0.5})
        with pytest.raises(ConfigError, match="'alpha': expected a number"):
            make_mixture("softmax_neg_ce", {"alpha": -1.0})

    @pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (0.0, 0.0), (1.0, math.nan)])
    def test_static_weights_that_can_not_be(self, weights):
        with pytest.raises(ConfigError, match="Weights of 2 teachers"):
            weights_of(make_mixture("mean_logits"), TWO, weights)

    @pytest.mark.parametrize(
        ("name", "what"),
        [("min_ce", "true labels"), ("route", "column of teachers"), ("random", "row keys")],
    )
    def test_an_input_that_is_missing_is_named(self, name, what):
        with pytest.raises(ConfigError, match=f"'{name}' need the {what}"):
            weights_of(make_mixture(name), TWO, EQUAL)


# The random pick of a teacher: a function of seed, epoch and key, in the right proportions.


def race(key: int, seed: int, epoch: int, weights: tuple[int, ...]) -> int:
    """Pick as `random_pick` does, on Python's unbounded integers."""

    def scrambled(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    times = []
    for teacher, weight in enumerate(weights):
        salt = hashlib.blake2b(f"{seed}/{epoch}/{teacher}".encode(), digest_size=8).digest()
        bits = scrambled((scrambled(key) + int.from_bytes(salt)) % 2**64) >> 11
        times.append(-math.log((bits + 0.5) / 2**53) / weight)
    return times.index(min(times))


class TestRandomPick:
    def pick(self, row_keys: Tensor, epoch=0, seed=0, weights=EQUAL, available=None) -> Tensor:
        mixture = make_mixture("random", {"seed": seed})
        logits = torch.zeros(len(weights), *row_keys.shape, 2)
        got = weights_of(
            mixture, logits, weights, row_keys=row_keys, epoch=epoch, available=available
        )
        assert set(got.unique().tolist()) <= {0.0, 1.0}
        return got.argmax(0)

    def test_it_depends_on_seed_epoch_and_key_alone(self):
        row_keys = (torch.arange(64) * 2**57 - 2**63 + 17).view(torch.uint64)
        picked = self.pick(row_keys)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        moved = row_keys.view(torch.int64)[order].view(torch.uint64)
        assert torch.equal(self.pick(moved), picked[order])
        assert torch.equal(self.pick(row_keys.view(torch.int64)), picked)
        assert torch.equal(
            self.pick(row_keys.view(torch.int64)[5:9].view(torch.uint64)), picked[5:9]
        )
        assert not torch.equal(self.pick(row_keys, epoch=1), picked)
        assert not torch.equal(self.pick(row_keys, seed=1), picked)

    def test_it_equals_the_same_hash_on_whole_numbers(self):
        values = [0, 1, 2, 3, 2**62 + 5, 2**63, 2**64 - 1]
        picked = self.pick(keys(*values), epoch=4, seed=9, weights=(1, 2, 3))
        expected = [race(value, seed=9, epoch=4, weights=(1, 2, 3)) for value in values]
        assert picked.tolist() == expected
        # A resumed run must pick as the one before it did: these may not change.
        assert self.pick(keys(0, 1, 2, 3, 2**63, 2**64 - 1), weights=(1, 1, 1)).tolist() == [
            1,
            2,
            1,
            0,
            2,
            0,
        ]

    def test_it_follows_the_static_weights(self):
        row_keys = torch.arange(20_000)
        shares = self.pick(row_keys, weights=(1.0, 0.0, 3.0)).bincount(minlength=3) / 20_000
        # Five standard deviations of a fair draw: 5 · √(¾ · ¼ / 20000) = 0.0153.
        assert shares.tolist() == pytest.approx([0.25, 0.0, 0.75], abs=0.0153)
        assert shares[1] == 0

    def test_epochs_are_independent(self):
        row_keys = torch.arange(20_000)
        same = (self.pick(row_keys) == self.pick(row_keys, epoch=1)).double().mean()
        assert same.item() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(20_000))

    def test_when_a_teacher_goes_only_its_rows_are_picked_anew(self):
        row_keys = torch.arange(300)
        available = torch.ones(3, 300, dtype=torch.bool)
        available[1] = False
        before = self.pick(row_keys, weights=(1, 1, 1))
        after = self.pick(row_keys, weights=(1, 1, 1), available=available)
        assert (before == 1).any()
        assert torch.equal(after[before != 1], before[before != 1])
        assert set(after.tolist()) == {0, 2}


# One target out of several teachers.

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from textbrewer.losses import kd_ce_loss


def test_mean_logits_equals_textbrewer():
    logits = stacked(3, 5, 4)
    student = stacked(1, 5, 4, seed=1)[0].requires_grad_()
    mixture = make_mixture("mean_logits")
    target = combine(mixture, logits, weights_of(mixture, logits, (1, 1, 1)), 4.0)
    ours = make_kd_loss("ce")(student, target, 4.0).mean()
    expected = kd_ce_loss(student, sum(logits) / 3, 4)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, student)[0] for loss in (ours, expected)),
        rtol=0,
        atol=1e-10,
    )


@pytest.mark.parametrize("per_row", [False, True])
def test_mean_probs_is_the_mean_of_the_softmaxes(per_row):
    logits = stacked(2, 3, 2, 4)
    temperature = torch.rand(3, 2, dtype=torch.float64) + 1 if per_row else 3.0
    divisor = temperature.unsqueeze(-1) if isinstance(temperature, Tensor) else temperature
    mixture = make_mixture("mean_probs")
    weights = weights_of(mixture, logits, (1.0, 3.0))
    target = combine(mixture, logits, weights, temperature)
    first, second = (logits / divisor).softmax(-1)
    torch.testing.assert_close((target / divisor).softmax(-1), first / 4 + second * 3 / 4)


@pytest.mark.parametrize("name", ["mean_probs", "softmax_neg_ce", "softmax_max_prob"])
def test_kl_to_mean_probs_has_the_gradient_of_the_weighted_sum(name):
    logits, labels = stacked(3, 4, 5), torch.tensor([0, 1, 2, -1])
    student = stacked(1, 4, 5, seed=1)[0].requires_grad_()
    mixture, kl = make_mixture(name), make_kd_loss("kl")
    weights = weights_of(mixture, logits, (1.0, 2.0, 3.0), labels)
    one = kl(student, combine(mixture, logits, weights, 2.0), 2.0).sum()
    each = torch.stack([kl(student, teacher, 2.0) for teacher in logits])
    many = (weights * each).sum()
    assert many > one + 0.01
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, student)[0] for loss in (one, many)), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("kd", sorted(KD_LOSSES))
def test_weights_one_and_zero_equal_one_teacher(kd):
    logits, labels = stacked(2, 4, 5), torch.tensor([0, 1, 2, 3])
    logits[1, 2] = math.nan
    student = stacked(1, 4, 5, seed=1)[0]
    loss = make_kd_loss(kd)
    alone = loss(student, logits[0], 2.0, labels)
    for name in ("mean_logits", "mean_probs"):
        if name == "mean_probs" and kd in ("mse", "bce"):
            continue  # a target up to a shift
        mixture = make_mixture(name)
        weights = weights_of(mixture, logits, (1.0, 0.0))
        torch.testing.assert_close(
            loss(student, combine(mixture, logits, weights, 2.0), 2.0, labels), alone
        )


def test_sum_losses_has_no_single_target():
    mixture = make_mixture("sum_losses")
    with pytest.raises(ConfigError, match="no single target"):
        combine(mixture, stacked(2, 1, 3), torch.ones(2, 1), 1.0)


@pytest.mark.parametrize("name", ["mean_logits", "mean_probs", "softmax_neg_ce", "min_ce"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes(name, dtype):
    hot = torch.tensor([[1e4, -1e4, 3.0, -math.inf], [0.0, 0.0, 0.0, -math.inf]])
    logits = torch.stack([hot, hot[:, [1, 0, 2, 3]]]).to(dtype)
    student = torch.zeros(2, 4).masked_fill(hot.isneginf(), -math.inf).requires_grad_()
    mixture = make_mixture(name)
    # The label of the second row is a masked class: an infinite cross-entropy everywhere.
    weights = weights_of(mixture, logits, EQUAL, torch.tensor([0, 3]))
    assert weights.sum(0).tolist() == pytest.approx([1.0, 1.0])
    target = combine(mixture, logits, weights, 2.0)
    assert target.dtype == torch.float32
    loss = make_kd_loss("kl")(student, target, 2.0)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_the_teachers_are_not_written_to():
    logits = stacked(2, 4, 5)
    before = logits.clone()
    for name in ("mean_logits", "mean_probs", "softmax_neg_ce", "min_ce"):
        mixture = make_mixture(name)
        weights = weights_of(mixture, logits, EQUAL, torch.tensor([0, 1, 2, 3]))
        combine(mixture, logits, weights, 2.0).add_(1.0)
    assert torch.equal(logits, before)


# Probability shift: parity where TextBrewer is right, and never in place.

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from textbrewer.distiller_utils import probability_shift_


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
