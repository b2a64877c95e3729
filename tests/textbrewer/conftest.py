"""Shuffles of either package are drawn from a generator of the tests' own."""

import pytest

from tests.textbrewer.script import SHUFFLES


@pytest.fixture(autouse=True)
def own_shuffles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybrew.textbrewer.feed.random", SHUFFLES)
    monkeypatch.setattr("random.shuffle", SHUFFLES.shuffle)
