"""One set-up for every test: no network, shapes checked, single-threaded torch."""

import os

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", TOKENIZERS_PARALLELISM="false")


# The same examples every time, however slow the machine: what fails here fails everywhere.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

install_import_hook(
    ["raybrew.losses", "raybrew.matches.match_losses", "raybrew.matches.presets"],
    "beartype.beartype",
)


@pytest.fixture(autouse=True)
def no_cluster_of_other_tests(request, monkeypatch, tmp_path_factory):
    """Hide from tests without Ray the note that `ray start` of a test beside them leaves."""
    if request.node.get_closest_marker("ray") is None:
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path_factory.getbasetemp() / "no-ray"))
