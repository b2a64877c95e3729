"""What all trials of a space need, found out and made before the first of them. No Ray.

jobs of the space ──► fit models, data, objective ──► data encoded once each
└──► what teachers are asked for, over all jobs
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from raybrew.config import DistillJob
from raybrew.errors import ConfigError
from raybrew.preparation import Preparation, PreparedTeacher, Readings, fit_together, read_tables
from raybrew.preparation.supplying import store_supplied
from raybrew.preparation.tables import Table, encode_table
from raybrew.tuning.brief import Brief, asked_together, encoding_key, loaded_tasks, tables_key
from raybrew.tuning.space import JobSpace

__all__ = ["LabelPass", "Survey", "survey", "with_saved_data"]


@dataclass(frozen=True)
class LabelPass:
    """Labels that one set of teachers computes together.

    Args:
        job: one of the jobs that need them.
        preparation: its data, and its teachers with the signals of all jobs.
    """

    job: DistillJob
    preparation: Preparation


@dataclass(frozen=True)
class Survey:
    """What was found out.

    Args:
        brief: for the trials.
        passes: labels to have before them; one, unless trials differ in data or teachers.
    """

    brief: Brief
    passes: tuple[LabelPass, ...]


def survey(space: JobSpace, folder: Path) -> Survey:
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
        self._readings = Readings()
        self._tables: dict[str, tuple[Table, ...]] = {}
        self._folders: dict[str, tuple[Mapping[str, str], ...]] = {}
        self._num_labels: dict[str, tuple[int, ...]] = {}
        # By data and teachers: a job, and what each job of this kind asks for.
        self._asked: dict[
            tuple[Any, ...], tuple[DistillJob, list[tuple[PreparedTeacher, ...]]]
        ] = {}

    def run(self) -> Survey:
        for config, job in self._space.jobs():
            try:
                self._look_at(job)
            except ConfigError as error:
                said = ", ".join(f"{path} = {value!r}" for path, value in config.items())
                raise ConfigError(f"space: with {said}: {error}") from error
        brief = Brief(
            space=self._space,
            tables=self._tables,
            folders=self._folders,
            fingerprints=self._readings.fingerprints,
        )
        passes = [
            self._pass(job, teachers, str(key[0])) for key, (job, teachers) in self._asked.items()
        ]
        return Survey(brief, tuple(passes))

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
        self, job: DistillJob, teachers: list[tuple[PreparedTeacher, ...]], key: str
    ) -> LabelPass:
        tables, folders = self._tables[tables_key(job)], self._folders[key]
        tasks = loaded_tasks(tables, folders, self._num_labels[key])
        asked = asked_together(teachers)
        store_supplied(job, tables, asked)
        return LabelPass(job, Preparation(tasks, asked))


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
