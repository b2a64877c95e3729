"""What Tune refuses when it begins is a mistake of the user's; what comes later isn't."""

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.train import ScalingConfig

import raybrew as rb
from raybrew.tuning import searching
from raybrew.tuning.searching import Search


class Following(contextlib.nullcontext):
    """A follower that has seen these trials."""

    def __init__(self, *trials: Any):
        super().__init__()
        self.trials = list(trials)

    def take(self, message: Any) -> None:
        """Hear nothing."""


@pytest.mark.parametrize(
    ("error", "trials", "kind"),
    [
        (ValueError("no mode"), 0, rb.ConfigError),
        (AttributeError("no mode"), 0, rb.ConfigError),
        (rb.TeacherError("gone"), 0, rb.TeacherError),
        (AttributeError("no mode"), 1, AttributeError),
    ],
)
def test_what_tune_refuses_before_any_trial_is_one_message(monkeypatch, error, trials, kind):
    def fit() -> None:
        raise error

    monkeypatch.setattr(searching, "start_mailbox", lambda: None)
    monkeypatch.setattr(searching, "Follower", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(Search, "_tuner", lambda *_, **__: SimpleNamespace(fit=fit))
    search = Search(*[None] * 6)  # type: ignore[arg-type]
    with pytest.raises(kind, match=str(error)) as caught:
        search.run(Following(*range(trials)), resume=False)  # type: ignore[arg-type]
    assert type(caught.value) is kind


class Tuner:
    """Tells how it was made."""

    can_restore = tune.Tuner.can_restore

    def __init__(self, *_: Any, **settings: Any):
        self.made = "begun" if "param_space" in settings else "empty"

    @classmethod
    def restore(cls, *_: Any, **settings: Any) -> "Tuner":
        tuner = cls(**settings)
        tuner.made = "restored"
        return tuner


@pytest.mark.parametrize(
    ("resume", "files", "made"),
    [
        (True, ["tuner.pkl", "experiment_state-1.json"], "restored"),
        (True, [], "begun"),  # stopped while it labelled
        (True, ["tuner.pkl"], "begun"),  # stopped before the first trial was noted
        (False, [], "begun"),
    ],
)
def test_trials_go_on_where_any_began(monkeypatch, tmp_path, resume, files, made):
    monkeypatch.setattr(tune, "Tuner", Tuner)
    monkeypatch.setattr(Search, "_trainable", lambda *_: None)
    for name in files:
        (tmp_path / "trials").mkdir(exist_ok=True)
        (tmp_path / "trials" / name).touch()
    search = Search(
        None,  # type: ignore[arg-type]
        {},
        tune.TuneConfig(),
        tune.RunConfig(),
        ScalingConfig(),
        tmp_path,
    )
    tuner: Any = search._tuner(None, resume=resume)  # type: ignore[arg-type]
    assert tuner.made == made


def test_a_trial_that_needs_nothing_is_placed_by_a_byte(tmp_path):
    search = Search(
        None,  # type: ignore[arg-type]
        {},
        tune.TuneConfig(),
        tune.RunConfig(),
        ScalingConfig(resources_per_worker={"CPU": 0}),
        tmp_path,
    )
    request = search._trainable(None).default_resource_request({})  # type: ignore[arg-type]
    assert request.required_resources == {"memory": 1}
