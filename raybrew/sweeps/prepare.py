"""What the trials share: encoded data, fingerprints, and the labels that any of them asks for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from raybrew.config import DistillJob
from raybrew.errors import ConfigError
from raybrew.objective.extensions import Extensions, registered
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
from raybrew.training.job import ResolvedJob

# What each trial is told: the space, the encoded data, what is known of the models. No Ray.
#
# config of a trial ──► job ──► fits the models (read once a process) ──► ResolvedJob


@dataclass(frozen=True)
class TrialContext:
    """What trials share, as values.

    Args:
        space: the base job and its paths.
        data: by `data_key`, the tasks' rows.
        folders: by `encoding_key`, of each task the folders of its encoded splits.
        fingerprints: of the teachers, which take a pass over their weights to find.
        extensions: what the user registered in the driver's process.
    """

    space: JobSpace
    data: Mapping[str, tuple[TaskData, ...]]
    folders: Mapping[str, tuple[Mapping[str, str], ...]]
    fingerprints: Mapping[tuple[str, ...], str]
    extensions: Extensions = field(default_factory=registered)

    def job(self, config: Mapping[str, Any]) -> DistillJob:
        """Return a trial's job."""
        return self.space.job(config)

    def resolve(self, job: DistillJob, cache: MetadataCache) -> ResolvedJob:
        """Return a trial's job with the data that was encoded for it; its worker hosts no teacher.

        Args:
            job: of the trial.
            cache: what this process read of models before.

        Raises:
            ConfigError: what it asks for doesn't fit together.
        """
        self.extensions.install()
        resolved, tokenizers = fit_models(job, self.data[data_key(job)], check_names(job), cache)
        resolved = resolved.encoded(self.folders[encoding_key(job, tokenizers)])
        return resolved.with_teachers([replace(each, model=None) for each in resolved.teachers])


def data_key(job: DistillJob) -> str:
    """Name the rows that a job reads."""
    routes = [(teacher.name, teacher.task, teacher.logits) for teacher in job.teachers]
    return json.dumps([[task.model_dump(mode="json") for task in job.tasks], routes])


def encoding_key(job: DistillJob, tokenizers: Sequence[Tokenizers]) -> str:
    """Name the encoded data of a job: its rows, and the tokenizer of each view."""
    views = [
        {view: tokenizer.name_or_path for view, tokenizer in each.items()} for each in tokenizers
    ]
    return json.dumps([data_key(job), views])


def merge_teachers(teachers: Sequence[Sequence[ResolvedTeacher]]) -> tuple[ResolvedTeacher, ...]:
    """Return each teacher with every signal that any of these jobs asks it for."""
    merged: dict[str, ResolvedTeacher] = {}
    for each in teachers:
        for teacher in each:
            before = merged.get(teacher.name, teacher)
            merged[teacher.name] = replace(
                before,
                signals=tuple(dict.fromkeys([*before.signals, *teacher.signals])),
                attention=before.attention or teacher.attention,
            )
    return tuple(merged.values())


# What all trials of a space need, found out and made before the first of them. No Ray.
#
# jobs of the space ──► fit models, data, objective ──► data encoded once each
# └──► what teachers are asked for, over all jobs


@dataclass(frozen=True)
class PreparedSweep:
    """What was found out.

    Args:
        brief: for the trials.
        passes: jobs whose labels to have before them, each with the signals of all its trials; one,
            unless trials differ in data or teachers.
    """

    brief: TrialContext
    passes: tuple[ResolvedJob, ...]


def survey(space: JobSpace, folder: Path) -> PreparedSweep:
    """Look at every job of the space, and encode the data of all.

    Args:
        space: checked already.
        folder: where encoded data goes.

    Raises:
        ConfigError: a combination of the space that can't be; names it.
        DataError: data that isn't what its task says.
    """
    return _Surveyor(space, folder).run()


class _Surveyor:
    def __init__(self, space: JobSpace, folder: Path):
        self._space, self._folder = space, folder
        self._cache = MetadataCache()
        self._data: dict[str, tuple[TaskData, ...]] = {}
        self._folders: dict[str, tuple[Mapping[str, str], ...]] = {}
        # By data and teachers: a job, its rows, and what each job of this kind asks for.
        self._asked: dict[Any, tuple[ResolvedJob, str, list[tuple[ResolvedTeacher, ...]]]] = {}

    def run(self) -> PreparedSweep:
        for config, job in self._space.jobs():
            try:
                self._look_at(job)
            except ConfigError as error:
                said = ", ".join(f"{path} = {value!r}" for path, value in config.items())
                raise ConfigError(f"space: with {said}: {error}") from error
        brief = TrialContext(
            space=self._space,
            data=self._data,
            folders=self._folders,
            fingerprints=self._cache.fingerprints,
        )
        passes = []
        for job, rows, teachers in self._asked.values():
            merged = job.with_teachers(merge_teachers(teachers))
            store_columns(merged, self._data[rows])
            passes.append(merged)
        return PreparedSweep(brief, tuple(passes))

    def _look_at(self, job: DistillJob) -> None:
        objectives, rows = check_names(job), data_key(job)
        if rows not in self._data:
            self._data[rows] = tuple(read_data(job))
        data = self._data[rows]
        resolved, tokenizers = fit_models(job, data, objectives, self._cache)
        key = encoding_key(job, tokenizers)
        if key not in self._folders:
            place = self._folder / str(len(self._folders))
            pairs = zip(data, tokenizers, strict=True)
            self._folders[key] = tuple(each.encode(views, place) for each, views in pairs)
        resolved = resolved.encoded(self._folders[key])
        who = tuple((t.name, t.fingerprint, t.view) for t in resolved.teachers)
        self._asked.setdefault((key, who), (resolved, rows, []))[2].append(resolved.teachers)


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


def _write(rows: Dataset, path: Path) -> None:
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        # Under its name it is whole: a sweep that goes on takes it as it is.
        temporary = path.with_suffix(".tmp")
        rows.to_parquet(str(temporary))
        temporary.rename(path)
    finally:
        if shown:
            datasets.enable_progress_bars()
