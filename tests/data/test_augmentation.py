"""Changes of token lists: draw for draw as in the published textbrewer, and by hand."""

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrew.data.augmentation import (
    OPERATIONS,
    deleting,
    long_disorder,
    masking,
    n_gram_sampling,
    short_disorder,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from textbrewer import data_utils

LETTERS = list("abcdefgh")
tokens_of = st.lists(st.integers(0, 99), max_size=30)
seeds = st.integers(0, 2**32 - 1)
CASES: list[tuple[str, dict[str, Any]]] = [
    ("masking", {"p": 0.4, "mask": "[MASK]"}),
    ("deleting", {"p": 0.4}),
    ("n_gram_sampling", {"p_ng": [0.1, 0.6, 0.3], "l_ng": [1, 2, 4]}),
    ("short_disorder", {"p": [0.3, 0.2, 0.2, 0.2, 0.1]}),
    ("long_disorder", {"p": 0.5, "length": 5}),
    ("long_disorder", {"p": 0.5, "length": 0.4}),
]


class Drawn:
    """A generator that gives these numbers."""

    def __init__(self, *values: Any):
        self._values = list(values)

    def random(self, size=None):
        return np.array(self._values.pop(0)) if size is not None else self._values.pop(0)

    def binomial(self, n, p, size):
        return self._values.pop(0)

    def choice(self, *_, **__):
        return self._values.pop(0)

    def integers(self, low, high):
        value = self._values.pop(0)
        assert low <= value < high
        return value


def drawn(*values: Any) -> Any:
    return Drawn(*values)


@pytest.mark.parametrize(("name", "options"), CASES)
@settings(deadline=None, max_examples=40)
@given(seed=seeds, length=st.integers(5, 40))
def test_equals_textbrewer_draw_for_draw(name, options, seed, length):
    theirs_draws = np.random.default_rng(seed)
    stand_in = SimpleNamespace(
        binomial=theirs_draws.binomial,
        choice=theirs_draws.choice,
        integer=int,
        ndarray=np.ndarray,
        random=SimpleNamespace(
            rand=theirs_draws.random,
            choice=theirs_draws.choice,
            binomial=theirs_draws.binomial,
            randint=theirs_draws.integers,
        ),
    )
    tokens = list(range(length))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_utils, "np", stand_in)
        theirs = getattr(data_utils, name)(list(tokens), **options)
    ours = OPERATIONS[name](tokens, np.random.default_rng(seed), **options)
    assert ours == theirs
    assert tokens == list(range(length))


def test_masking_and_deleting_by_hand():
    assert masking("abc", drawn([0.3, 0.1, 0.2]), p=0.2, mask="_") == ["a", "_", "c"]
    assert deleting("abc", drawn([1, 0, 1])) == ["a", "c"]
    generator = np.random.default_rng(0)
    assert masking("abc", generator, p=1.0, mask="_") == ["_"] * 3
    assert masking("abc", generator, p=0.0, mask="_") == list("abc")
    assert deleting("abc", generator, p=1.0) == []


def test_an_n_gram_by_hand():
    assert n_gram_sampling(LETTERS, drawn(3, 5)) == ["f", "g", "h"]
    assert n_gram_sampling("ab", drawn(5)) == ["a", "b"]
    assert n_gram_sampling([], np.random.default_rng(0)) == []


@pytest.mark.parametrize(
    ("case", "expected"),
    [(1, "bacdefgh"), (2, "cbadefgh"), (3, "cabdefgh"), (4, "bcadefgh")],
)
def test_each_short_disorder_by_hand(case, expected):
    # Once, and then places that stay as they are.
    assert "".join(short_disorder(LETTERS, drawn(case, *[0] * 7))) == expected


def test_the_last_two_change_places_in_any_case():
    for case in (1, 2, 3, 4):
        assert short_disorder("ab", drawn(case)) == ["b", "a"]
    assert short_disorder("a", drawn()) == ["a"]


def test_a_long_disorder_by_hand():
    # TextBrewer's own example.
    found = long_disorder(range(11), np.random.default_rng(0), p=1, length=0.4)
    assert found == [2, 3, 0, 1, 6, 7, 4, 5, 8, 9, 10]
    # Spans of 4: the first place stays, the second changes, then there is no room.
    assert "".join(long_disorder(LETTERS, drawn(0.9, 0.1, 0.9), p=0.5, length=4)) == "adebcfgh"


@pytest.mark.parametrize("length", [0.01, 0.4])
def test_a_span_of_no_token_ends(length):
    # TextBrewer goes round for ever here.
    assert long_disorder("ab", np.random.default_rng(0), p=1.0, length=length) == ["a", "b"]


@settings(deadline=None, max_examples=60)
@given(tokens=tokens_of, seed=seeds)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_what_holds_for_any_list(name, options, tokens, seed):
    before = list(tokens)
    found = OPERATIONS[name](tokens, np.random.default_rng(seed), **options)
    assert tokens == before
    assert found == OPERATIONS[name](tuple(tokens), np.random.default_rng(seed), **options)
    if name in ("short_disorder", "long_disorder"):
        assert sorted(found) == sorted(tokens)
    elif name == "masking":
        assert len(found) == len(tokens)
        assert all(new in (old, "[MASK]") for new, old in zip(found, tokens, strict=True))
    elif name == "n_gram_sampling":
        assert any(found == tokens[at : at + len(found)] for at in range(len(tokens) + 1))
    else:
        rest = iter(tokens)
        assert all(token in rest for token in found)


def test_chances_are_those_that_were_asked_for():
    generator = np.random.default_rng(0)
    many = list(range(20000))
    assert masking(many, generator, p=0.3, mask=-1).count(-1) / 20000 == pytest.approx(
        0.3, abs=0.02
    )
    assert len(deleting(many, generator, p=0.3)) / 20000 == pytest.approx(0.7, abs=0.02)
    lengths = [len(n_gram_sampling(range(9), generator)) for _ in range(5000)]
    for length in range(1, 6):
        assert lengths.count(length) / 5000 == pytest.approx(0.2, abs=0.03)
