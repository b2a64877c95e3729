"""What the trials of a sweep share, and one trial: in its own process, or a TorchTrainer inside it.

jobs of the space ──► fit models, data, objective ──► data encoded once each ──► TrialContext
                                                  └─► the labels of all jobs, in passes

config of a trial ──► job ──► fits the models (read once a process) ──► ResolvedJob ──► training
    one worker         StudentTrial: trains to the next evaluation, which Tune sees, and saves
    several workers    train_with_workers: a `TorchTrainer` inside the trial's function, since a
                       Trainer passed to `Tuner` fails in Ray 2.60
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import ray
import torch
from datasets import Dataset
from ray import tune
from ray.actor import ActorHandle
from ray.train import RunConfig, ScalingConfig
from ray.tune.integration.ray_train import TuneReportCallback

from raybrew.config import DistillJob
from raybrew.errors import ConfigError, Event
from raybrew.models.devices import check_device, device_for
from raybrew.objective.extensions import Extensions, install, registered
from raybrew.runs.events import EventSubscriber, Message, start_event_channel
from raybrew.runs.resolve import (
    MetadataCache,
    Tokenizers,
    check_names,
    fit_models,
    read_data,
    store_columns,
)
from raybrew.sweeps.space import JobSpace
from raybrew.tasks.task_data import TaskData
from raybrew.teachers.teacher import ResolvedTeacher
from raybrew.training.build import build_training
from raybrew.training.callbacks import Hooks
from raybrew.training.job import ResolvedJob
from raybrew.training.loop import StudentTraining
from raybrew.training.ray_train import fit
from raybrew.training.world import World

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints of several workers in that of the trial."""


@dataclass(frozen=True)
class TrialContext:
    """What trials share, as values.

    Args:
        space: the base job and its paths.
        fingerprints: of the teachers, which take a pass over their weights to compute.
        data: the tasks' rows, by `_data_key`.
        folders: of each task the folders of its encoded splits, by `_encoding_key`.
        extensions: what the user registered in the driver's process.
    """

    space: JobSpace
    fingerprints: Mapping[tuple[str, ...], str]
    data: dict[str, tuple[TaskData, ...]] = field(default_factory=dict)
    folders: dict[str, tuple[Mapping[str, str], ...]] = field(default_factory=dict)
    extensions: Extensions = field(default_factory=registered)

    def resolve(self, config: Mapping[str, Any], cache: MetadataCache) -> ResolvedJob:
        """Return a trial's job with the data that was encoded for it; its worker hosts no teacher.

        Args:
            config: of the trial.
            cache: what this process has read of models.

        Raises:
            ConfigError: the parts of the trial's job don't fit together.
        """
        install(self.extensions)
        job = self.space.job(config)
        resolved, tokenizers = fit_models(job, self.data[_data_key(job)], check_names(job), cache)
        resolved = resolved.encoded(self.folders[_encoding_key(job, tokenizers)])
        return resolved.with_teachers([replace(each, model=None) for each in resolved.teachers])


def prepare_sweep(space: JobSpace, folder: Path) -> tuple[TrialContext, list[ResolvedJob]]:
    """Check every job of the space, and encode the data of all.

    Args:
        space: checked already.
        folder: where encoded data is saved.

    Returns:
        What trials share, and the jobs whose labels are computed before them, each with the signals
        of all its trials: one, unless trials differ in data or teachers.

    Raises:
        ConfigError: a combination of the space that can't be; names it.
        DataError: data that isn't what its task declares.
    """
    cache = MetadataCache()
    context = TrialContext(space, cache.fingerprints)
    # By data and teachers: a job, its rows, and the teachers of each such job.
    needed: dict[Any, tuple[ResolvedJob, str, list[tuple[ResolvedTeacher, ...]]]] = {}
    for config, job in space.jobs():
        try:
            key, resolved = _encoded(job, context, folder, cache)
        except ConfigError as error:
            values = ", ".join(f"{path} = {value!r}" for path, value in config.items())
            raise ConfigError(f"space: with {values}: {error}") from error
        who = tuple((t.name, t.fingerprint, t.view) for t in resolved.teachers)
        same = needed.setdefault((key, who), (resolved, _data_key(job), []))
        same[2].append(resolved.teachers)
    passes = []
    for resolved, rows, teachers in needed.values():
        passes.append(resolved.with_teachers(merge_teachers(teachers)))
        store_columns(passes[-1], context.data[rows])
    return context, passes


def _encoded(
    job: DistillJob, context: TrialContext, folder: Path, cache: MetadataCache
) -> tuple[str, ResolvedJob]:
    """Resolve a job; read and encode its data, unless another job of the sweep has the same."""
    objectives, rows = check_names(job), _data_key(job)
    if rows not in context.data:
        context.data[rows] = tuple(read_data(job))
    data = context.data[rows]
    resolved, tokenizers = fit_models(job, data, objectives, cache)
    key = _encoding_key(job, tokenizers)
    if key not in context.folders:
        place = folder / str(len(context.folders))
        pairs = zip(data, tokenizers, strict=True)
        context.folders[key] = tuple(each.encode(views, place) for each, views in pairs)
    return key, resolved.encoded(context.folders[key])


def merge_teachers(teachers: Sequence[Sequence[ResolvedTeacher]]) -> tuple[ResolvedTeacher, ...]:
    """Return each teacher with every signal that any of these jobs needs of it."""
    merged: dict[str, ResolvedTeacher] = {}
    for teacher in (one for each in teachers for one in each):
        before = merged.get(teacher.name, teacher)
        merged[teacher.name] = replace(
            before,
            signals=tuple(dict.fromkeys([*before.signals, *teacher.signals])),
            attention=before.attention or teacher.attention,
        )
    return tuple(merged.values())


def with_saved_data(job: DistillJob, folder: Path) -> DistillJob:
    """Return the job with live data sets saved to files, which trials and its YAML can name."""
    tasks = []
    for task in job.tasks:
        saved = {}
        for side in ("train", "eval"):
            rows = getattr(task, side)
            if isinstance(rows, Dataset):
                path = folder / f"{task.name}-{side}-{rows._fingerprint}.parquet"
                if not path.exists():
                    folder.mkdir(parents=True, exist_ok=True)
                    _write(rows, path)
                saved[side] = str(path)
        tasks.append(task.model_copy(update=saved))
    return job.model_copy(update={"tasks": tuple(tasks)})


def _data_key(job: DistillJob) -> str:
    """Name the rows that a job reads."""
    routes = [(teacher.name, teacher.task, teacher.logits) for teacher in job.teachers]
    return json.dumps([[task.model_dump(mode="json") for task in job.tasks], routes])


def _encoding_key(job: DistillJob, tokenizers: Sequence[Tokenizers]) -> str:
    """Name the encoded data of a job: its rows, and the tokenizer of each view."""
    views = [
        {view: tokenizer.name_or_path for view, tokenizer in each.items()} for each in tokenizers
    ]
    return json.dumps([_data_key(job), views])


def _write(rows: Dataset, path: Path) -> None:
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        # Under its name the file is complete: a resumed sweep reads it as it is.
        temporary = path.with_suffix(".tmp")
        rows.to_parquet(str(temporary))
        temporary.rename(path)
    finally:
        if shown:
            datasets.enable_progress_bars()


class StudentTrial(tune.Trainable):
    """One configuration after another, in one process."""

    def setup(
        self,
        config: dict[str, Any],
        shared: TrialContext | None = None,
        channel: ActorHandle | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        """Start the first configuration."""
        assert shared is not None, "tune.with_parameters gives it"
        assert channel is not None, "tune.with_parameters gives it"
        self._shared, self._channel = shared, channel
        self._resources = resources or {}
        self._cache = MetadataCache(shared.fingerprints)
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another configuration; what this process has loaded stays."""
        self._start(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train up to the next evaluation."""
        training, hooks = self._training, self._hooks
        if not self._started:
            training.begin(hooks)
            self._started = True
        if not training.done:
            training.advance(hooks)
        else:  # a copy of a trial that was done, under PBT
            values = training.evaluate(hooks) | {"train/progress": 1.0}
            hooks.evaluated(training.step, values)
        return trial_metrics(training, hooks.values)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the student's checkpoint."""
        self._training.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Continue from a checkpoint, this trial's or, under PBT, another's."""
        self._training.resume(Path(checkpoint), own_settings=True)

    def _start(self, config: Mapping[str, Any]) -> None:
        job = self._shared.resolve(config, self._cache)
        cpus = self._resources.get("CPU", 1)
        torch.set_num_threads(job.config.training.num_threads or max(1, int(cpus)))
        device = device_for(self._resources.get("GPU", 0))
        check_device(device, "a trial", "scaling.use_gpu to false")
        self._training = build_training(job, World(device=device), None)
        self._hooks = _TrialHooks(self._channel, self.trial_id)
        self._started = False


def trial_metrics(training: StudentTraining, values: Mapping[str, float]) -> dict[str, Any]:
    """Return what Tune sees: the last evaluation, and how many labels were found and missed."""
    labels = {}
    if training.labels is not None:
        labels["labels/hits"] = float(training.labels.counts["hits"])
        labels["labels/misses"] = float(training.labels.counts["misses"])
    return {**values, **labels, "step": training.step, "done": training.done}


class _TrialHooks(Hooks):
    """Sends the curves to the driver, and keeps the last evaluation for Tune."""

    def __init__(self, channel: ActorHandle, trial: str):
        self._channel, self._trial = channel, trial
        self._losses: dict[str, float] = {}
        self.values: dict[str, float] = {}

    def losses(self, step: int, values: dict[str, float]) -> None:
        self._losses = values
        self._put({"kind": "values", "step": step, "values": values})

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        self.values = {**self._losses, **values}
        # Waited for, so that nothing of a trial that is stopped here is lost.
        ray.get(self._put({"kind": "values", "step": step, "values": values}))

    # Tune asks for checkpoints itself: none is due here.

    def recovered(self, event: Event) -> None:
        self._put(event.message())

    def _put(self, message: Message) -> ray.ObjectRef:
        return self._channel.put.remote({**message, "trial": self._trial})


def train_with_workers(
    config: Mapping[str, Any], shared: TrialContext, channel: ActorHandle, scaling: ScalingConfig
) -> None:
    """Train the student of a trial on its workers; each evaluation is reported to Tune.

    Args:
        config: the trial's paths.
        shared: what trials share.
        channel: where curves go, with the trial's name.
        scaling: the workers, Ray Train's own.
    """
    context = tune.get_context()
    trial, folder = context.get_trial_id(), context.get_trial_dir()
    assert folder is not None, "a trial has a folder"
    job = shared.resolve(config, MetadataCache(shared.fingerprints))

    def forward(message: Message) -> None:
        channel.put.remote({**message, "trial": trial})

    inner = start_event_channel()
    with EventSubscriber(inner, forward):
        fit(
            job,
            teachers=None,
            channel=inner,
            # Ray Train changes the object that it is given.
            scaling_config=copy.copy(scaling),
            run_config=RunConfig(
                name="workers", storage_path=folder, callbacks=[TuneReportCallback()]
            ),
            # A resumed trial continues from the newest in there.
            checkpoints=Path(folder) / CHECKPOINTS,
        )
