"""Tune's part of a sweep: the trials begun or continued, and what became of each.

TuneConfig, RunConfig ──► Tuner ──► StudentTrial (one worker) or a function (several)
└────► rows
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.actor import ActorHandle
from ray.train import ScalingConfig
from ray.tune import CheckpointConfig, ExperimentAnalysis
from ray.tune.experiment import Trial

from raybrew.errors import ConfigError, RaybrewError
from raybrew.mailbox import Follower, start_mailbox
from raybrew.student.checkpoints import Checkpoints
from raybrew.tuning.brief import Brief
from raybrew.tuning.checks import FIGURES
from raybrew.tuning.following import TrialFollower, TrialRelay
from raybrew.tuning.results import TrialRow
from raybrew.tuning.settings import concurrency, copies_checkpoints
from raybrew.tuning.several import CHECKPOINTS, train_with_workers
from raybrew.tuning.trial import StudentTrial

__all__ = ["Search"]

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

    brief: Brief
    space: Mapping[str, Any]
    tune_config: tune.TuneConfig
    run_config: tune.RunConfig
    scaling: ScalingConfig
    folder: Path

    def run(self, follower: TrialFollower, *, resume: bool) -> list[TrialRow]:
        """Run the trials to their end.

        Args:
            follower: told of what happens.
            resume: go on with the trials in the folder, if any began.

        Raises:
            ConfigError: Tune refuses what it is given, or can't read what it saved.
            KeyboardInterrupt: the user stopped it; what was done is kept.
        """
        mailbox = start_mailbox()
        place = self.folder / TRIALS
        resume = resume and _can_go_on(place)
        with follower, Follower(mailbox, follower.take), _quiet_tune():
            tuner = self._restored(mailbox) if resume else self._tuner(mailbox)
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

    def _restored(self, mailbox: ActorHandle) -> tune.Tuner:
        place, trainable = self.folder / TRIALS, self._trainable(mailbox)
        try:
            return tune.Tuner.restore(
                str(place), trainable, param_space=dict(self.space), resume_unfinished=True
            )
        except Exception as error:  # Tune unpickles a file, which may raise anything
            raise _unreadable(place, error) from error

    def _tuner(self, mailbox: ActorHandle) -> tune.Tuner:
        try:
            return tune.Tuner(
                self._trainable(mailbox),
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

    def _trainable(self, mailbox: ActorHandle) -> Any:
        worker: dict[str, Any] = dict(self.scaling._resources_per_worker_not_none)
        if self._in_one_process:
            worker = worker if any(worker.values()) else NEXT_TO_NOTHING
            with_brief = tune.with_parameters(
                StudentTrial, brief=self.brief, mailbox=mailbox, resources=worker
            )
            return tune.with_resources(with_brief, worker)
        function = tune.with_parameters(
            train_with_workers, brief=self.brief, mailbox=mailbox, scaling=self.scaling
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
            callbacks=[*(given.callbacks or []), TrialRelay()],
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
