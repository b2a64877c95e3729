"""Who follows the trials: a tracker each, on the driver, and one bar for all of them.

trial ──values──► mailbox ──► tracker of the trial ──► metrics.jsonl, W&B (grouped), TensorBoard
Tune  ──ended───────────────► its last figures, closed
"""

import logging
import math
import os
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from raybrew.config import TrackingConfig
from raybrew.errors import ConfigError, RaybrewError
from raybrew.events import Event, EventLog
from raybrew.mailbox import Message
from raybrew.progress import Bars
from raybrew.tracking import Tracker
from raybrew.tuning.checks import FIGURES
from raybrew.tuning.space import JobSpace

__all__ = ["TrialFollower", "TrialRelay"]

_log = logging.getLogger(__name__)

BAR = "trials"
LINGER_S = 3.0
"""A trial's last curves may still be on their way when Tune says that it has ended."""


_current: "list[TrialFollower]" = []
"""The follower of the sweep that this process runs."""


def _follower() -> "TrialFollower":
    assert _current, "Tune runs within the follower's context"
    return _current[-1]


@dataclass
class _Ended:
    trial: str
    failed: bool
    figures: Mapping[str, Any]
    at: float


class TrialRelay(Callback):
    """Tells the follower of this process what Tune says.

    Tune saves its callbacks with the sweep and takes these when the sweep goes on, in another
    process with a follower of its own: so the callback itself holds nothing.
    """

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Keep sight of the trials."""
        _follower().saw(trials)

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Tell what the trial is about."""
        _follower().started(trial)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Tell of an evaluation."""
        _follower().evaluated(result)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Tell that it is done, or was stopped by the scheduler."""
        _follower().ended(trial, failed=False)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Tell that it failed."""
        _follower().ended(trial, failed=True)


class TrialFollower:
    """Opens a tracker with a trial's first figures, and closes it after the trial's end.

    W&B may take seconds to open a run: that happens on a thread of its own, Tune doesn't wait.

    Args:
        space: makes a trial's job of its config.
        folder: where each trial has its folder.
        sweep: its name, which W&B groups the runs by.
        bars: of the driver.
        events: what trials survived.
        score: the metric of the sweep.
        mode: `max` or `min`.
        total: trials, None if nobody knows.
    """

    def __init__(
        self,
        space: JobSpace,
        folder: Path,
        sweep: str,
        bars: Bars,
        events: EventLog,
        score: str,
        mode: str,
        total: int | None,
    ):
        self._space, self._folder, self._sweep = space, folder, sweep
        self._bars, self._score, self._total = bars, score, total
        self._events = events
        self._sign = -1.0 if mode == "min" else 1.0
        self._configs: dict[str, Mapping[str, Any]] = {}
        self._names: dict[str, str] = {}
        self._trackers: dict[str, Tracker] = {}
        self._ended: list[_Ended] = []
        self._best: float | None = None
        self.trials: list[Trial] = []
        self._work: queue.SimpleQueue[Message | _Ended | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="raybrew-trials", daemon=True)

    def __enter__(self) -> "TrialFollower":
        _current.append(self)
        self._bars.start(BAR, self._total or 0, "trials")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._work.put(None)
        self._thread.join()
        _current.remove(self)

    def lacks(self, begun: int) -> bool:
        """Return whether fewer trials began than the sweep has."""
        return self._total is not None and begun < self._total

    def take(self, message: Message) -> None:
        """Take figures that a trial has sent."""
        self._work.put(message)

    def saw(self, trials: list[Trial]) -> None:
        """Keep sight of the trials."""
        self.trials = trials
        self._bars.move_to(BAR, sum(trial.is_finished() for trial in trials))

    def started(self, trial: Trial) -> None:
        """Remember what a trial is about."""
        self._configs[trial.trial_id] = {k: v for k, v in trial.config.items() if k in self._paths}
        self._names[trial.trial_id] = str(trial)

    def evaluated(self, result: Mapping[str, Any]) -> None:
        """Show the best score so far."""
        score = result.get(self._score)
        if score is None or not math.isfinite(score):
            return
        if self._best is None or self._sign * (score - self._best) > 0:
            self._best = score
            self._bars.note(BAR, f"best {self._score} {score:.4f}")

    def ended(self, trial: Trial, *, failed: bool) -> None:
        """Close a trial's tracker, soon."""
        figures = {
            key: value
            for key, value in (trial.last_result or {}).items()
            if isinstance(value, (int, float)) and key.startswith(FIGURES)
        }
        self._work.put(_Ended(trial.trial_id, failed, figures, time.monotonic()))

    @property
    def _paths(self) -> Mapping[str, Any]:
        return self._space.ranges

    def _serve(self) -> None:
        going = True
        while going:
            try:
                item = self._work.get(timeout=1.0)
            except queue.Empty:
                item = {}
            going = item is not None
            try:
                self._do(item)
                self._close(time.monotonic() - (LINGER_S if going else 0))
            except (OSError, RaybrewError):
                # A disk that is full, say: trials go on, and what comes later may be written.
                _log.exception("what a trial said could not be noted")
        for trial in list(self._trackers):  # trials that were stopped with the sweep
            self._trackers.pop(trial).finish(1)

    def _do(self, item: Message | _Ended | None) -> None:
        if isinstance(item, _Ended):
            self._ended.append(item)
        elif item is not None and item.get("kind") == "values":
            self._log_values(item)
        elif item is not None and item.get("kind") == "event":
            event = Event(**item["event"])
            name = self._names.get(item["trial"], item["trial"])
            self._events.add(replace(event, who=f"{name}: {event.who}"))

    def _log_values(self, message: Message) -> None:
        tracker = self._trackers.get(message["trial"]) or self._open(message["trial"])
        tracker.log(message["values"], step=message["step"])

    def _open(self, trial: str) -> Tracker:
        config = self._configs[trial]
        job = self._space.job(config)
        name = self._names[trial]
        tracking = job.tracking.model_copy(
            update={
                "group": job.tracking.group or os.environ.get("WANDB_RUN_GROUP") or self._sweep,
                "run_name": f"{job.tracking.run_name or self._sweep}/{name}",
            }
        )
        plain = {**job.to_plain(), "sweep": {"name": self._sweep, "trial": name, **config}}
        self._trackers[trial] = self._tracker(name, tracking, plain)
        return self._trackers[trial]

    def _tracker(self, name: str, tracking: TrackingConfig, plain: dict[str, Any]) -> Tracker:
        folder = self._folder / name
        try:
            return Tracker(folder, tracking, plain, name, is_trial=True)
        except ConfigError as error:
            # Credentials were good when the sweep began; a trial outlives its observers.
            _log.warning("%s: goes on without W&B, metrics.jsonl has everything: %s", name, error)
            return Tracker(folder, tracking.model_copy(update={"wandb": False}), plain, name)

    def _close(self, before: float) -> None:
        for ended in [each for each in self._ended if each.at <= before]:
            self._ended.remove(ended)
            tracker = self._trackers.pop(ended.trial, None)
            if tracker is not None:
                tracker.summary(ended.figures)
                tracker.finish(1 if ended.failed else 0)
