"""What Tune refuses when it begins is a mistake of the user's; what comes later isn't."""

import contextlib
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.train import ScalingConfig

import raybrew as rb
from raybrew.sweeps import search as searching
from raybrew.sweeps.search import Search

SHARED: Any = None


def search_in(folder: Path, scaling: ScalingConfig | None = None) -> Search:
    """Return a search over nothing, whose trials are in `trials` of the folder."""
    place = tune.RunConfig(name=folder.name, storage_path=str(folder.parent))
    return Search({}, tune.TuneConfig(metric="m", mode="max"), place, scaling or ScalingConfig())


class Monitor(contextlib.nullcontext):
    """A monitor that has seen these trials."""

    def __init__(self, *trials: Any):
        super().__init__()
        self.trials = list(trials)

    def take(self, message: Any) -> None:
        """Take nothing."""


@pytest.mark.parametrize(
    ("error", "trials", "kind"),
    [
        (ValueError("no mode"), 0, rb.ConfigError),
        (AttributeError("no mode"), 0, rb.ConfigError),
        (rb.TeacherError("lost"), 0, rb.TeacherError),
        (AttributeError("no mode"), 1, AttributeError),
    ],
)
def test_what_tune_refuses_before_any_trial_is_one_message(
    monkeypatch, tmp_path, error, trials, kind
):
    def fit() -> None:
        raise error

    monkeypatch.setattr(searching, "start_event_channel", lambda: None)
    monkeypatch.setattr(searching, "EventSubscriber", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(Search, "_tuner", lambda *_, **__: SimpleNamespace(fit=fit))
    monkeypatch.setattr(Search, "_trainable", lambda *_: "a trainable")
    with pytest.raises(kind, match=str(error)) as caught:
        search_in(tmp_path).run(SHARED, Monitor(*range(trials)), resume=False)  # type: ignore[arg-type]
    assert type(caught.value) is kind


class Made(Exception):
    """How the tuner was made that runs the trials."""


class Tuner:
    """Records how it was made."""

    can_restore = tune.Tuner.can_restore

    def __init__(self, *_: Any, **settings: Any):
        self.made = "begun" if "param_space" in settings else "empty"

    @classmethod
    def restore(cls, *_: Any, **settings: Any) -> "Tuner":
        tuner = cls(**settings)
        tuner.made = "restored"
        return tuner

    def fit(self) -> None:
        """Run the trials."""
        raise Made(self.made)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a search in a folder that has these files of Tune's."""
    monkeypatch.setattr(searching, "start_event_channel", lambda: None)
    monkeypatch.setattr(searching, "EventSubscriber", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(Search, "_trainable", lambda *_: "a trainable")

    def run(files: dict[str, bytes], *, resume: bool) -> None:
        for name, content in files.items():
            path = tmp_path / "trials" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        search_in(tmp_path).run(SHARED, Monitor(), resume=resume)  # type: ignore[arg-type]

    return run


STATE = {"experiment_state-1.json": b"{}"}


@pytest.mark.parametrize(
    ("resume", "files", "made"),
    [
        (True, {"tuner.pkl": b"", **STATE}, "restored"),
        (True, {}, "begun"),  # stopped while it labelled
        (True, {"tuner.pkl": b""}, "begun"),  # stopped before the first trial was noted
        (False, {}, "begun"),
    ],
)
def test_trials_go_on_where_any_began(run, monkeypatch, resume, files, made):
    monkeypatch.setattr(tune, "Tuner", Tuner)
    with pytest.raises(rb.ConfigError, match=f"{made}"):
        run(files, resume=resume)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "EOFError"),
        (b"nonsense", "UnpicklingError"),
        (pickle.dumps({"a": [1] * 100})[:-20], "UnpicklingError"),
        (pickle.dumps([1]), "AttributeError|TypeError"),
        (b"cnowhere\nNothing\n.", "ModuleNotFoundError"),
        (None, "FileNotFoundError: there is no tuner.pkl"),
    ],
)
def test_a_sweep_that_tune_cant_read_back_is_one_message(run, tmp_path, content, message):
    files = STATE if content is None else {"tuner.pkl": content, **STATE}
    with pytest.raises(
        rb.ConfigError, match=rf"resume: .*{tmp_path}/trials\).*({message}).*run\.name"
    ):
        run(files, resume=True)


def test_the_callback_of_an_older_sweep_can_be_read(run, monkeypatch):
    monkeypatch.setattr(tune, "Tuner", Tuner)
    with pytest.raises(rb.ConfigError, match="restored"):
        run({"tuner.pkl": b"", **STATE}, resume=True)
    assert pickle.loads(b"craybrew.tuning.following\nTrialRelay\n.") is searching.MonitorCallback


def test_trials_that_tune_cant_read_back_are_one_message(run, monkeypatch):
    monkeypatch.setattr(tune, "Tuner", Tuner)
    with pytest.raises(rb.ConfigError, match=r"resume: expected the sweep as Ray Tune.*: restored"):
        run({"tuner.pkl": b"", **STATE}, resume=True)


def test_a_trial_that_needs_nothing_is_placed_by_a_byte(tmp_path):
    search = search_in(tmp_path, ScalingConfig(resources_per_worker={"CPU": 0}))
    request = search._trainable(SHARED, SHARED).default_resource_request({})
    assert request.required_resources == {"memory": 1}
