"""Tune's part of a sweep: trials started or resumed, their trackers, and a row for each.

TuneConfig, RunConfig ──► Tuner ──► StudentTrial (one worker) or a function (several)
└────► rows

trial ──values──► event channel ──► tracker of the trial ──► metrics.jsonl, W&B, TensorBoard
Tune  ──ended─────────────────────► its last metrics, closed
"""

import contextlib
import logging
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ray import tune
from ray.actor import ActorHandle
from ray.train import ScalingConfig
from ray.tune import Callback, CheckpointConfig, ExperimentAnalysis
from ray.tune.experiment import Trial

from raybrew.config import TrackingConfig
from raybrew.errors import ConfigError, Event, RaybrewError
from raybrew.runs.events import EventSubscriber, Message, start_event_channel
from raybrew.runs.run import Run
from raybrew.runs.tracking import Tracker
from raybrew.sweeps.results import TrialRow, metrics_of, row_of
from raybrew.sweeps.settings import concurrency, copies_checkpoints
from raybrew.sweeps.trial import StudentTrial, TrialContext, train_with_workers
from raybrew.training.ray_private import worker_resources

logger = logging.getLogger(__name__)

TRIALS = "trials"
"""Folder of the trials in that of the sweep; also the name of their bar."""
LINGER_S = 3.0
"""A trial's last curves may still be on their way when Tune reports its end."""
NEXT_TO_NOTHING: dict[str, float] = {"memory": 1}
"""Tune places nothing that asks for nothing: a byte is as little as can be."""


@dataclass(frozen=True)
class Search:
    """The trials of a sweep, as Tune runs them.

    Args:
        domains: Tune's search spaces, by path.
        config: Ray's TuneConfig, with a metric and a mode.
        run_config: Ray Tune's own, with a name and an absolute path.
        scaling: workers of one trial, Ray Train's own.
    """

    domains: Mapping[str, Any]
    config: tune.TuneConfig
    run_config: tune.RunConfig
    scaling: ScalingConfig

    @property
    def name(self) -> str:
        """The name of the sweep."""
        return str(self.run_config.name)

    @property
    def metric(self) -> str:
        """The metric that trials are ranked by."""
        return str(self.config.metric)

    @property
    def mode(self) -> str:
        """`max` or `min`."""
        return str(self.config.mode)

    @property
    def folder(self) -> Path:
        """The folder of the trials."""
        return Path(str(self.run_config.storage_path), self.name, TRIALS)

    @property
    def num_trials(self) -> int | None:
        """How many trials there will be; None where that isn't known."""
        grids = [
            len(given["grid_search"])
            for given in self.domains.values()
            if isinstance(given, Mapping) and "grid_search" in given
        ]
        samples = self.config.num_samples
        if getattr(self.config.search_alg, "_points_to_evaluate", None):
            # Points that the user gives replace as many of the grid's as agree with them.
            return None
        return None if samples < 0 else samples * math.prod(grids)

    def run(self, shared: TrialContext, monitor: "TrialMonitor", *, resume: bool) -> list[TrialRow]:
        """Run the trials to their end.

        Args:
            shared: what they share.
            monitor: sees what happens.
            resume: continue the trials in the folder, if any began.

        Raises:
            ConfigError: Tune refuses what it is given, or can't read what it saved.
            KeyboardInterrupt: the user stopped it; what was done is kept.
        """
        channel = start_event_channel()
        resume = resume and self._has_trials()
        with monitor, EventSubscriber(channel, monitor.take), _quiet_tune():
            trainable = self._trainable(shared, channel)
            tuner = self._restored(trainable) if resume else self._tuner(trainable)
            try:
                results = tuner.fit()
            except Exception as error:
                if monitor.trials or isinstance(error, RaybrewError):
                    raise
                # Before there was any trial.
                raise (self._unreadable(error) if resume else _refused(error)) from error
        analysis = ExperimentAnalysis(results.experiment_path)
        # Where all were done before, Tune had nothing to do, and the monitor saw none.
        trials = monitor.trials or analysis.trials or []
        # Tune ends quietly on Ctrl-C, and doesn't make the trials that are still to come.
        early = len(trials) < (self.num_trials or 0) and self.config.time_budget_s is None
        if early or any(not trial.is_finished() for trial in trials):
            raise KeyboardInterrupt
        frames = analysis.trial_dataframes
        return [row_of(each, frames.get(each.trial_id), self.metric) for each in analysis.trials]

    def _has_trials(self) -> bool:
        # A sweep that was stopped while it labelled has no trials yet.
        if not any(self.folder.glob("experiment_state-*.json")):
            return False
        if not tune.Tuner.can_restore(str(self.folder)):
            raise self._unreadable(FileNotFoundError("there is no tuner.pkl"))
        return True

    def _restored(self, trainable: Any) -> tune.Tuner:
        place, space = str(self.folder), dict(self.domains)
        # Older sweeps were saved with the callback under the name that it had then.
        old = ModuleType("raybrew.tuning.following")
        vars(old)["TrialRelay"] = MonitorCallback
        sys.modules.setdefault(old.__name__, old)
        try:
            return tune.Tuner.restore(place, trainable, param_space=space, resume_unfinished=True)
        except Exception as error:  # Tune unpickles a file, which may raise anything
            raise self._unreadable(error) from error

    def _tuner(self, trainable: Any) -> tune.Tuner:
        try:
            return tune.Tuner(
                trainable,
                param_space=dict(self.domains),
                tune_config=replace(
                    self.config,
                    # A process that has loaded everything runs one trial after another.
                    reuse_actors=self._in_one_process,
                    max_concurrent_trials=concurrency(self.config, self.scaling),
                    trial_name_creator=self.config.trial_name_creator or _name,
                    trial_dirname_creator=str,
                ),
                run_config=self._trials_config(),
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise _refused(error) from error

    @property
    def _in_one_process(self) -> bool:
        return self.scaling.min_workers == 1

    def _trainable(self, shared: TrialContext, channel: ActorHandle) -> Any:
        worker = worker_resources(self.scaling)
        if self._in_one_process:
            worker = worker if any(worker.values()) else NEXT_TO_NOTHING
            trial = tune.with_parameters(
                StudentTrial, shared=shared, channel=channel, resources=worker
            )
            return tune.with_resources(trial, worker)
        function = tune.with_parameters(
            train_with_workers, shared=shared, channel=channel, scaling=self.scaling
        )
        # The function only waits, its workers ask for what they need.
        return tune.with_resources(function, tune.PlacementGroupFactory([NEXT_TO_NOTHING]))

    def _trials_config(self) -> tune.RunConfig:
        given = self.run_config
        checkpoints = given.checkpoint_config or CheckpointConfig()
        if self._in_one_process and checkpoints.num_to_keep is None:
            # A trial resumes from the last one, and the best student is taken from it; under PBT
            # other trials may still have to read an older one.
            copied = copies_checkpoints(self.config.scheduler)
            checkpoints = CheckpointConfig(
                num_to_keep=4 if copied else 1, checkpoint_frequency=1, checkpoint_at_end=True
            )
        return replace(
            given,
            name=self.folder.name,
            storage_path=str(self.folder.parent),
            checkpoint_config=checkpoints,
            callbacks=[*(given.callbacks or []), MonitorCallback()],
            # The user sees the bars and the report.
            verbose=0 if given.verbose == tune.RunConfig().verbose else given.verbose,
        )

    def _unreadable(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"resume: expected the sweep as Ray Tune saved it (tuner.pkl and the newest "
            f"experiment_state-*.json in {self.folder}), got what can't be read: "
            f"{type(error).__name__}: {error}. Start it under another run.name: the labels are in "
            "the store, no teacher computes them again"
        )


def _refused(error: Exception) -> ConfigError:
    return ConfigError(f"tune: Ray Tune refused the sweep: {error}")


def _name(trial: Trial) -> str:
    return f"trial-{trial.trial_id.rpartition('_')[2]}"


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    # A failing trial is in the table, with its error.
    tunes = logging.getLogger("ray.tune")
    level = tunes.level
    tunes.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        tunes.setLevel(level)


_monitors: "list[TrialMonitor]" = []
"""The monitor of the sweep that this process runs."""


class MonitorCallback(Callback):
    """Passes Tune's events on to the monitor of this process.

    Tune saves its callbacks with the sweep and restores them when it is resumed, in another
    process with a monitor of its own: so the callback itself holds nothing.
    """

    def on_step_end(self, *_: Any, **info: Any) -> None:
        """Note the trials."""
        _monitors[-1].saw(info["trials"])

    def on_trial_start(self, *_: Any, **info: Any) -> None:
        """Note the trial's config."""
        _monitors[-1].started(info["trial"])

    def on_trial_result(self, *_: Any, **info: Any) -> None:
        """Note an evaluation."""
        _monitors[-1].evaluated(info["result"])

    def on_trial_complete(self, *_: Any, **info: Any) -> None:
        """The trial is done, or was stopped by the scheduler."""
        _monitors[-1].ended(info["trial"], failed=False)

    def on_trial_error(self, *_: Any, **info: Any) -> None:
        """The trial failed."""
        _monitors[-1].ended(info["trial"], failed=True)


class TrialMonitor:
    """Opens a tracker with a trial's first metrics, and closes it after the trial's end.

    W&B may take seconds to open a run: that happens on a thread of its own, Tune doesn't wait.

    Args:
        shared: makes a trial's job of its config.
        search: the sweep.
        run: of the driver, with its bars and its log of events.
    """

    def __init__(self, shared: TrialContext, search: Search, run: Run):
        self._space, self._search, self._run = shared.space, search, run
        self._sign = -1.0 if search.mode == "min" else 1.0
        self._started: dict[str, Trial] = {}
        self._trackers: dict[str, Tracker] = {}
        self._ended: list[Message] = []
        self._best: float | None = None
        self.trials: list[Trial] = []
        self._work: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="raybrew-trials", daemon=True)

    def __enter__(self) -> "TrialMonitor":
        _monitors.append(self)
        self._run.bars.start(TRIALS, self._search.num_trials or 0, "trials")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._work.put(None)
        self._thread.join()
        _monitors.remove(self)

    def take(self, message: Message) -> None:
        """Take a message that a trial has sent."""
        self._work.put(message)

    def saw(self, trials: list[Trial]) -> None:
        """Note the trials."""
        self.trials = trials
        self._run.bars.move_to(TRIALS, sum(trial.is_finished() for trial in trials))

    def started(self, trial: Trial) -> None:
        """Note a trial, with its name and config."""
        self._started[trial.trial_id] = trial

    def evaluated(self, result: Mapping[str, Any]) -> None:
        """Show the best score so far."""
        score = result.get(self._search.metric)
        if score is None or not math.isfinite(score):
            return
        name = self._started.get(str(result.get("trial_id")))
        values = {f"trials/{name}/{self._search.metric}": float(score)}
        self._run.tracker.log(values, step=int(result.get("step", 0)))
        if self._best is None or self._sign * (score - self._best) > 0:
            self._best = score
            self._run.bars.note(TRIALS, f"best {self._search.metric} {score:.4f}")

    def ended(self, trial: Trial, *, failed: bool) -> None:
        """Close a trial's tracker, soon."""
        metrics, at = metrics_of(trial.last_result), time.monotonic()
        ended = {"kind": "ended", "trial": trial.trial_id, "failed": failed}
        self._work.put({**ended, "metrics": metrics, "at": at})

    def _serve(self) -> None:
        running = True
        while running:
            message: Message | None = {}
            with contextlib.suppress(queue.Empty):
                message = self._work.get(timeout=1.0)
            running = message is not None
            try:
                self._handle(message or {})
                self._close(time.monotonic() - (LINGER_S if running else 0))
            except (OSError, RaybrewError):
                # A full disk, for example: trials continue, and later metrics may be written.
                logger.exception("the metrics of a trial could not be written")
        for trial in list(self._trackers):  # trials that were stopped with the sweep
            self._trackers.pop(trial).finish(1)

    def _handle(self, message: Message) -> None:
        trial = message.get("trial", "")
        kind = message.get("kind")
        if kind == "ended":
            self._ended.append(message)
        elif kind == "values":
            tracker = self._trackers.get(trial) or self._open(trial)
            tracker.log(message["values"], step=message["step"])
        elif kind == "event":
            event = Event(**message["event"])
            name = self._started.get(trial, trial)
            self._run.events.add(replace(event, who=f"{name}: {event.who}"))

    def _open(self, trial: str) -> Tracker:
        started, sweep = self._started[trial], self._search.name
        name = str(started)
        config = {k: v for k, v in started.config.items() if k in self._space.ranges}
        job = self._space.job(config)
        tracking = job.tracking.model_copy(
            update={
                "group": job.tracking.group or os.environ.get("WANDB_RUN_GROUP") or sweep,
                "run_name": f"{job.tracking.run_name or sweep}/{name}",
            }
        )
        plain = {**job.to_plain(), "sweep": {"name": sweep, "trial": name, **config}}
        self._trackers[trial] = self._tracker(name, tracking, plain)
        return self._trackers[trial]

    def _tracker(self, name: str, tracking: TrackingConfig, plain: dict[str, Any]) -> Tracker:
        folder = self._search.folder / name
        try:
            return Tracker(folder, tracking, plain, name, is_trial=True)
        except ConfigError as error:
            # Credentials were good when the sweep began; a trial goes on without its tracker.
            logger.warning("%s: runs without W&B, metrics.jsonl has everything: %s", name, error)
            return Tracker(folder, tracking.model_copy(update={"wandb": False}), plain, name)

    def _close(self, before: float) -> None:
        for ended in [each for each in self._ended if each["at"] <= before]:
            self._ended.remove(ended)
            tracker = self._trackers.pop(ended["trial"], None)
            if tracker is not None:
                tracker.summary(ended["metrics"])
                tracker.finish(1 if ended["failed"] else 0)
