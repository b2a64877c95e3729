"""The house stays as small as it is, and its words plain; `make structure` prints the counts."""

import ast
import re
from pathlib import Path

import pytest

from tests.structure import ROOT, Module, counts, importers_of, repeated_names

TOPS = ("raybrew", ".")


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


def test_the_architecture_page_knows_every_room_and_names_no_file_that_is_not_there():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {each.name for each in (ROOT / "raybrew").iterdir() if each.is_dir()} - {"__pycache__"}
    assert {room for room in rooms if f"`{room}/`" in page} == rooms
    named = re.findall(r"`((?:\w+/)+\w+\.py)", page)
    missing = [each for each in named if not any((ROOT / top / each).exists() for top in TOPS)]
    assert len(named) > 60
    assert not missing


def test_pages_name_no_test_that_is_not_there():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        named = re.findall(r"`(tests/[\w/]+\.py)", page.read_text())
        assert [each for each in named if not (ROOT / each).exists()] == [], page
