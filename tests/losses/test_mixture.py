"""Mixtures of teachers: weights by hand, choices by name, and what happens when one is gone."""

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raybrew.errors import ConfigError, LabelError
from raybrew.losses.mixture import MIXTURES, combine, make_mixture, teacher_weights

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
        weights = teacher_weights(make_mixture(name, options), TWO, (3.0, 1.0), LABEL)
        assert weights.flatten().tolist() == pytest.approx(expected, abs=1e-12)

    def test_ca_mkd_of_three(self):
        logits = torch.cat([TWO, TWO[:1]])  # e^CE = 2, 8, 2
        weights = teacher_weights(make_mixture("ca_mkd"), logits, (1, 1, 1), LABEL)
        assert weights.flatten().tolist() == pytest.approx([5 / 12, 2 / 12, 5 / 12])

    def test_route(self):
        route = torch.tensor([[1, 0, 2]])
        weights = teacher_weights(
            make_mixture("route"), stacked(3, 1, 3, 4), (1, 1, 1), route=route
        )
        assert weights.argmax(0).tolist() == route.tolist()
        assert weights.sum(0).tolist() == [[1, 1, 1]]
        assert weights.count_nonzero() == 3

    def test_rows_without_a_label_take_the_static_weights(self):
        logits = TWO.expand(2, 2, 3)
        for name in ("softmax_neg_ce", "min_ce", "ca_mkd", "mt_bert"):
            weights = teacher_weights(
                make_mixture(name), logits, (1.0, 3.0), torch.tensor([0, -100])
            )
            assert weights[:, 1].tolist() == [0.25, 0.75]
            assert weights[0, 0] > 0.5

    def test_one_teacher_alone(self):
        logits, labels = stacked(1, 3, 4), torch.tensor([0, 1, -1])
        route, row_keys = torch.zeros(3, dtype=torch.int64), keys(1, 2, 3)
        for name in MIXTURES:
            if name == "mt_bert":
                continue  # under sum_losses its weight is not 1
            weights = teacher_weights(
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
        weights = teacher_weights(
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
        weights = teacher_weights(
            make_mixture("sum_losses"), logits, (1.0, 2.0, 3.0), available=available
        )
        assert weights.flatten().tolist() == [1.5, 0.0, 4.5]
        weights = teacher_weights(
            make_mixture("ca_mkd"), logits, (1, 1, 1), LABEL, available=available
        )
        assert weights.flatten().tolist() == pytest.approx([0.8, 0.0, 0.2])
        weights = teacher_weights(
            make_mixture("mt_bert"), logits, (1, 1, 1), LABEL, available=available
        )
        expected = [1.5 / (1 + LN2), 0.0, 1.5 / (1 + 3 * LN2)]
        assert weights.flatten().tolist() == pytest.approx(expected)

    def test_a_row_without_any_teacher_is_an_error(self):
        available = torch.tensor([[True, False], [True, False]])
        for name in ("mean_logits", "sum_losses", "min_ce", "ca_mkd", "random", "softmax_max_prob"):
            with pytest.raises(
                LabelError, match=r"No teacher for 1 of 2 rows \(first at \[\[1\]\]\)"
            ):
                teacher_weights(
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
            teacher_weights(
                make_mixture("route"), stacked(2, 2, 3), EQUAL, route=torch.tensor([0, bad])
            )
        gone = torch.tensor([[True, True], [True, False]])
        with pytest.raises(LabelError, match="No teacher for 1 of 2"):
            teacher_weights(
                make_mixture("route"),
                stacked(2, 2, 3),
                EQUAL,
                route=torch.tensor([1, 1]),
                available=gone,
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
        return teacher_weights(
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
        assert [name for name in MIXTURES if MIXTURES[name].needs_route] == ["route"]
        assert [name for name in MIXTURES if MIXTURES[name].needs_row_keys] == ["random"]

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
            teacher_weights(make_mixture("mean_logits"), TWO, weights)

    @pytest.mark.parametrize(
        ("name", "what"),
        [("min_ce", "true labels"), ("route", "column of teachers"), ("random", "row keys")],
    )
    def test_an_input_that_is_missing_is_named(self, name, what):
        with pytest.raises(ConfigError, match=f"'{name}' need the {what}"):
            teacher_weights(make_mixture(name), TWO, EQUAL)
