"""What the trials share: encoded data, fingerprints, and the labels that any of them asks for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from raybrew.config import DistillJob
from raybrew.data.split import EncodedSplit
from raybrew.errors import ConfigError
from raybrew.objective.extensions import Extensions, registered
from raybrew.runs.resolve import (
    MetadataCache,
    distill_plan,
    fit_together,
    read_tables,
    store_supplied,
)
from raybrew.sweeps.space import JobSpace
from raybrew.tasks.task_data import Table, encode_table
from raybrew.teachers.teacher import TeacherSpec
from raybrew.training.build import RankPlan
from raybrew.training.job import Fitting, ResolvedJob, ResolvedTask, ResolvedTeacher

# What each trial is told: the space, the encoded data, what is known of the models. No Ray.
#
# config of a trial ──► job ──► fits the models (read once a process) ──► RankPlan


@dataclass(frozen=True)
class TrialContext:
    """What trials share, as values.

    Args:
        space: the base job and its paths.
        tables: by `tables_key`, the tasks' rows.
        folders: by `encoding_key`, of each task the folders of its encoded splits.
        fingerprints: of the teachers, which take a pass over their weights to find.
        extensions: what the user registered in the driver's process.
    """

    space: JobSpace
    tables: Mapping[str, tuple[Table, ...]]
    folders: Mapping[str, tuple[Mapping[str, str], ...]]
    fingerprints: Mapping[tuple[str, ...], str]
    extensions: Extensions = field(default_factory=registered)

    def job(self, config: Mapping[str, Any]) -> DistillJob:
        """Return a trial's job."""
        return self.space.job(config)

    def preparation(self, job: DistillJob, readings: MetadataCache) -> ResolvedJob:
        """Return a trial's job with the data that was encoded for it.

        Args:
            job: of the trial.
            readings: what this process read of models before.

        Raises:
            ConfigError: what it asks for doesn't fit together.
        """
        tables = self.tables[tables_key(job)]
        fitting = fit_together(job, tables, readings)
        folders = self.folders[encoding_key(job, fitting)]
        tasks = loaded_tasks(tables, folders, fitting.num_labels)
        return ResolvedJob(tasks, fitting.teachers, fitting.matches)

    def plan(self, job: DistillJob, readings: MetadataCache) -> RankPlan:
        """Return what a trial's worker is to do: it hosts no teacher, whatever the job says."""
        self.extensions.install()
        plan = distill_plan(job, self.preparation(job, readings))
        return replace(plan, teachers=tuple(replace(each, hosted=None) for each in plan.teachers))


def tables_key(job: DistillJob) -> str:
    """Name the rows that a job reads."""
    routes = [(teacher.name, teacher.task, teacher.logits) for teacher in job.teachers]
    return json.dumps([[task.model_dump(mode="json") for task in job.tasks], routes])


def encoding_key(job: DistillJob, fitting: Fitting) -> str:
    """Name the encoded data of a job: its rows, and the tokenizer of each view."""
    views = [
        {view: tokenizer.name_or_path for view, tokenizer in tokenizers.items()}
        for tokenizers in fitting.tokenizers
    ]
    return json.dumps([tables_key(job), views])


def loaded_tasks(
    tables: Sequence[Table], folders: Sequence[Mapping[str, str]], num_labels: Sequence[int]
) -> tuple[ResolvedTask, ...]:
    """Return tasks whose encoded splits are mapped into memory.

    Args:
        tables: of the tasks.
        folders: of each, by `train` and `eval`.
        num_labels: of each, logits of a row.
    """
    return tuple(
        ResolvedTask(
            task=table.task,
            label_names=table.label_names,
            train=EncodedSplit.load(Path(each["train"])),
            eval=EncodedSplit.load(Path(each["eval"])) if "eval" in each else None,
            folders=dict(each),
            num_labels=size,
        )
        for table, each, size in zip(tables, folders, num_labels, strict=True)
    )


def merge_teachers(teachers: Sequence[Sequence[ResolvedTeacher]]) -> tuple[ResolvedTeacher, ...]:
    """Return each teacher with every signal that any of these jobs asks it for."""
    merged: dict[str, ResolvedTeacher] = {}
    for each in teachers:
        for teacher in each:
            name = teacher.teacher.name
            before = merged.get(name, teacher)
            merged[name] = replace(
                before,
                signals=tuple(dict.fromkeys([*before.signals, *teacher.signals])),
                spec=_hosted_for_both(before.spec, teacher.spec),
            )
    return tuple(merged.values())


def _hosted_for_both(one: TeacherSpec | None, other: TeacherSpec | None) -> TeacherSpec | None:
    if one is None or other is None:
        return None
    return replace(one, attention=one.attention or other.attention)


# What all trials of a space need, found out and made before the first of them. No Ray.
#
# jobs of the space ──► fit models, data, objective ──► data encoded once each
# └──► what teachers are asked for, over all jobs


@dataclass(frozen=True)
class LabelPass:
    """Labels that one set of teachers computes together.

    Args:
        job: one of the jobs that need them.
        preparation: its data, and its teachers with the signals of all jobs.
    """

    job: DistillJob
    preparation: ResolvedJob


@dataclass(frozen=True)
class PreparedSweep:
    """What was found out.

    Args:
        brief: for the trials.
        passes: labels to have before them; one, unless trials differ in data or teachers.
    """

    brief: TrialContext
    passes: tuple[LabelPass, ...]


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
        self._readings = MetadataCache()
        self._tables: dict[str, tuple[Table, ...]] = {}
        self._folders: dict[str, tuple[Mapping[str, str], ...]] = {}
        self._num_labels: dict[str, tuple[int, ...]] = {}
        # By data and teachers: a job, and what each job of this kind asks for.
        self._asked: dict[
            tuple[Any, ...], tuple[DistillJob, list[tuple[ResolvedTeacher, ...]]]
        ] = {}

    def run(self) -> PreparedSweep:
        for config, job in self._space.jobs():
            try:
                self._look_at(job)
            except ConfigError as error:
                said = ", ".join(f"{path} = {value!r}" for path, value in config.items())
                raise ConfigError(f"space: with {said}: {error}") from error
        brief = TrialContext(
            space=self._space,
            tables=self._tables,
            folders=self._folders,
            fingerprints=self._readings.fingerprints,
        )
        passes = [
            self._pass(job, teachers, str(key[0])) for key, (job, teachers) in self._asked.items()
        ]
        return PreparedSweep(brief, tuple(passes))

    def _look_at(self, job: DistillJob) -> None:
        rows = tables_key(job)
        if rows not in self._tables:
            self._tables[rows] = tuple(read_tables(job))
        tables = self._tables[rows]
        fitting = fit_together(job, tables, self._readings)
        key = encoding_key(job, fitting)
        if key not in self._folders:
            place = self._folder / str(len(self._folders))
            self._folders[key] = tuple(
                encode_table(table, tokenizers, place, num_labels).folders
                for table, tokenizers, num_labels in zip(
                    tables, fitting.tokenizers, fitting.num_labels, strict=True
                )
            )
        self._num_labels[key] = fitting.num_labels
        who = tuple((t.teacher.name, t.fingerprint, t.view) for t in fitting.teachers)
        self._asked.setdefault((key, who), (job, []))[1].append(fitting.teachers)

    def _pass(
        self, job: DistillJob, teachers: list[tuple[ResolvedTeacher, ...]], key: str
    ) -> LabelPass:
        tables, folders = self._tables[tables_key(job)], self._folders[key]
        tasks = loaded_tasks(tables, folders, self._num_labels[key])
        asked = merge_teachers(teachers)
        store_supplied(job, tables, asked)
        return LabelPass(job, ResolvedJob(tasks, asked))


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
