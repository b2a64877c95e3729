"""What Tune refuses when it begins is a mistake of the user's; what comes later isn't."""

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

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
