"""The house stays as small as it is, and its words plain; `make structure` prints the counts."""

import ast
from pathlib import Path

import pytest

from tests.structure import Module, counts, importers_of, repeated_names


@pytest.mark.parametrize("count", counts(), ids=lambda count: count.what)
def test_each_count_is_within_its_bound(count):
    assert count.found <= count.at_most, count


def module(name: str, text: str) -> Module:
    return Module(name, Path(name.replace(".", "/") + ".py"), ast.parse(text))


def test_importers_are_found_wherever_the_import_stands():
    found = [
        module("raybrew.a", "X = 1"),
        module("raybrew.b", "from raybrew.a import X\nfrom raybrew import c"),
        module("raybrew.c", "def f():\n    import raybrew.a"),
        module("raybrew.d.a", ""),
    ]
    assert importers_of(found) == {
        "raybrew.a": {"raybrew.b", "raybrew.c"},
        "raybrew.c": {"raybrew.b"},
    }
    assert repeated_names(found) == ["a.py"]
