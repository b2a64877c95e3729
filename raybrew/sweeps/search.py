"""Tune's part of a sweep: trials begun or resumed, followed by trackers, and one row for each."""

import contextlib
import dataclasses
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.actor import ActorHandle
from ray.train import ScalingConfig
from ray.tune import Callback, CheckpointConfig, ExperimentAnalysis
from ray.tune.experiment import Trial

from raybrew.config import TrackingConfig
from raybrew.errors import ConfigError, Event, RaybrewError
from raybrew.runs.events import EventLog, EventSubscriber, Message, start_event_channel
from raybrew.runs.tracking import Tracker
from raybrew.sweeps.prepare import TrialContext
from raybrew.sweeps.results import TrialRow
from raybrew.sweeps.settings import FIGURES, concurrency, copies_checkpoints
from raybrew.sweeps.space import JobSpace
from raybrew.sweeps.trial import CHECKPOINTS, StudentTrial, train_with_workers
from raybrew.training.callbacks import Bars
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.ray_private import worker_resources

# Who follows the trials: a tracker each, on the driver, and one bar for all of them.
#
# trial ──values──► channel ──► tracker of the trial ──► metrics.jsonl, W&B (grouped), TensorBoard
# Tune  ──ended───────────────► its last figures, closed

_log = logging.getLogger(__name__)

BAR = "trials"
LINGER_S = 3.0
"""A trial's last curves may still be on their way when Tune says that it has ended."""


_current: "list[TrialMonitor]" = []
"""The follower of the sweep that this process runs."""


def _follower() -> "TrialMonitor":
    assert _current, "Tune runs within the follower's context"
    return _current[-1]


@dataclass
class _Ended:
    trial: str
    failed: bool
    figures: Mapping[str, Any]
    at: float


class MonitorCallback(Callback):
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


class TrialMonitor:
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

    def __enter__(self) -> "TrialMonitor":
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


# Tune's part of a sweep: the trials begun or continued, and what became of each.
#
# TuneConfig, RunConfig ──► Tuner ──► StudentTrial (one worker) or a function (several)
# └────► rows

TRIALS = "trials"
"""Folder of the trials in that of the sweep."""
NEXT_TO_NOTHING: dict[str, float] = {"memory": 1}
"""Tune places nothing that asks for nothing: a byte is as little as can be."""


@dataclasses.dataclass(frozen=True)
class Search:
    """A sweep's trials.

    Args:
        brief: what they share.
        space: Tune's search spaces by path.
        tune_config: Ray's own, with a metric and a mode.
        run_config: Ray's own.
        scaling: workers of one trial, Ray Train's own.
        folder: of the sweep.
    """

    brief: TrialContext
    space: Mapping[str, Any]
    tune_config: tune.TuneConfig
    run_config: tune.RunConfig
    scaling: ScalingConfig
    folder: Path

    def run(self, follower: TrialMonitor, *, resume: bool) -> list[TrialRow]:
        """Run the trials to their end.

        Args:
            follower: told of what happens.
            resume: go on with the trials in the folder, if any began.

        Raises:
            ConfigError: Tune refuses what it is given, or can't read what it saved.
            KeyboardInterrupt: the user stopped it; what was done is kept.
        """
        channel = start_event_channel()
        place = self.folder / TRIALS
        resume = resume and _can_go_on(place)
        with follower, EventSubscriber(channel, follower.take), _quiet_tune():
            tuner = self._restored(channel) if resume else self._tuner(channel)
            try:
                results = tuner.fit()
            except Exception as error:
                if follower.trials or isinstance(error, RaybrewError):
                    raise
                # Before there was any trial.
                raise (_unreadable(place, error) if resume else _refused(error)) from error
        analysis = ExperimentAnalysis(results.experiment_path)
        # Where all were done before, Tune had nothing to do, and the follower saw none.
        trials = follower.trials or analysis.trials or []
        # Tune ends quietly on Ctrl-C, and makes the trials that are still to come no more.
        early = self.tune_config.time_budget_s is None and follower.lacks(len(trials))
        if early or any(not trial.is_finished() for trial in trials):
            raise KeyboardInterrupt
        return self._rows(analysis)

    def _restored(self, channel: ActorHandle) -> tune.Tuner:
        place, trainable = self.folder / TRIALS, self._trainable(channel)
        try:
            return tune.Tuner.restore(
                str(place), trainable, param_space=dict(self.space), resume_unfinished=True
            )
        except Exception as error:  # Tune unpickles a file, which may raise anything
            raise _unreadable(place, error) from error

    def _tuner(self, channel: ActorHandle) -> tune.Tuner:
        try:
            return tune.Tuner(
                self._trainable(channel),
                param_space=dict(self.space),
                tune_config=dataclasses.replace(
                    self.tune_config,
                    # A process that has loaded everything serves one trial after another.
                    reuse_actors=self._in_one_process,
                    max_concurrent_trials=concurrency(self.tune_config, self.scaling),
                    trial_name_creator=self.tune_config.trial_name_creator or _name,
                    trial_dirname_creator=str,
                ),
                run_config=self._run_config(self.folder / TRIALS),
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise _refused(error) from error

    @property
    def _in_one_process(self) -> bool:
        return self.scaling.min_workers == 1

    def _trainable(self, channel: ActorHandle) -> Any:
        worker = worker_resources(self.scaling)
        if self._in_one_process:
            worker = worker if any(worker.values()) else NEXT_TO_NOTHING
            with_brief = tune.with_parameters(
                StudentTrial, brief=self.brief, channel=channel, resources=worker
            )
            return tune.with_resources(with_brief, worker)
        function = tune.with_parameters(
            train_with_workers, brief=self.brief, channel=channel, scaling=self.scaling
        )
        # The function only waits, its workers ask for what they need.
        return tune.with_resources(function, tune.PlacementGroupFactory([NEXT_TO_NOTHING]))

    def _run_config(self, place: Path) -> tune.RunConfig:
        given = self.run_config
        checkpoints = given.checkpoint_config or CheckpointConfig()
        if self._in_one_process and checkpoints.num_to_keep is None:
            # The last one is what a trial goes on from, and what the best student is taken of;
            # others may still have to read an older one where they copy each other.
            copied = copies_checkpoints(self.tune_config.scheduler)
            checkpoints = CheckpointConfig(
                num_to_keep=4 if copied else 1, checkpoint_frequency=1, checkpoint_at_end=True
            )
        return dataclasses.replace(
            given,
            name=place.name,
            storage_path=str(place.parent),
            checkpoint_config=checkpoints,
            callbacks=[*(given.callbacks or []), MonitorCallback()],
            # The bars and the report are what a user sees.
            verbose=0 if given.verbose == tune.RunConfig().verbose else given.verbose,
        )

    def _rows(self, analysis: ExperimentAnalysis) -> list[TrialRow]:
        frames = analysis.trial_dataframes
        metric = self.tune_config.metric
        assert metric is not None, "with_defaults has set it"
        return [_row(trial, frames.get(trial.trial_id), metric) for trial in analysis.trials]


def _can_go_on(place: Path) -> bool:
    # A sweep that was stopped while it labelled has no trials yet.
    if not any(place.glob("experiment_state-*.json")):
        return False
    if not tune.Tuner.can_restore(str(place)):
        raise _unreadable(place, FileNotFoundError("there is no tuner.pkl"))
    return True


def _unreadable(place: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"resume: expected the sweep as Ray Tune saved it (tuner.pkl and the newest "
        f"experiment_state-*.json in {place}), got what can't be read: {type(error).__name__}: "
        f"{error}. Start it under another run.name: the labels are in the store, no teacher is "
        "asked again"
    )


def _refused(error: Exception) -> ConfigError:
    return ConfigError(f"tune: Ray Tune refused the sweep: {error}")


def _row(trial: Trial, frame: Any, metric: str) -> TrialRow:
    last = trial.last_result or {}
    error = trial.get_error()
    done = last.get("train/progress", 0.0) >= 1.0
    curve: tuple[tuple[int, float], ...] = ()
    if frame is not None and len(frame) and {"step", metric} <= set(frame.columns):
        curve = tuple(
            (int(step), float(score))
            for step, score in zip(frame["step"], frame[metric], strict=True)
        )
    return TrialRow(
        name=str(trial),
        config=dict(trial.config),
        status="failed" if error is not None else "finished" if done else "stopped",
        score=float(last[metric]) if metric in last else None,
        step=int(last.get("step", 0)),
        evaluations=len(curve),
        seconds=float(last.get("time_total_s", 0.0)),
        metrics={
            key: float(value)
            for key, value in last.items()
            if key.startswith(FIGURES) and isinstance(value, (int, float))
        },
        curve=curve,
        error="" if error is None else _last_line(error),
        checkpoint=_checkpoint(trial),
    )


def _checkpoint(trial: Trial) -> str:
    if trial.checkpoint is not None:
        return trial.checkpoint.path
    # Several workers write theirs by themselves.
    newest = None if trial.path is None else Checkpoints(Path(trial.path, CHECKPOINTS)).newest()
    return "" if newest is None else str(newest)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _name(trial: Trial) -> str:
    return f"trial-{trial.trial_id.rpartition('_')[2]}"


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    # A failing trial is in the table, with its error.
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
