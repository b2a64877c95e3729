"""What each trial is told: the space, the encoded data, what is known of the models. No Ray.

config of a trial ──► job ──► fits the models (read once a process) ──► RankPlan
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raybrew.config import DistillJob
from raybrew.data.split import EncodedSplit
from raybrew.extensions import Extensions, registered
from raybrew.planning import distill_plan
from raybrew.preparation import (
    Fitting,
    Preparation,
    PreparedTask,
    PreparedTeacher,
    Readings,
    fit_together,
)
from raybrew.preparation.tables import Table
from raybrew.student.building import RankPlan
from raybrew.teachers.teacher import TeacherSpec
from raybrew.tuning.space import JobSpace

__all__ = ["Brief", "encoding_key", "tables_key"]


@dataclass(frozen=True)
class Brief:
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

    def preparation(self, job: DistillJob, readings: Readings) -> Preparation:
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
        return Preparation(tasks, fitting.teachers, fitting.matches)

    def plan(self, job: DistillJob, readings: Readings) -> RankPlan:
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
) -> tuple[PreparedTask, ...]:
    """Return tasks whose encoded splits are mapped into memory.

    Args:
        tables: of the tasks.
        folders: of each, by `train` and `eval`.
        num_labels: of each, logits of a row.
    """
    return tuple(
        PreparedTask(
            task=table.task,
            label_names=table.label_names,
            train=EncodedSplit.load(Path(each["train"])),
            eval=EncodedSplit.load(Path(each["eval"])) if "eval" in each else None,
            folders=dict(each),
            num_labels=size,
        )
        for table, each, size in zip(tables, folders, num_labels, strict=True)
    )


def asked_together(teachers: Sequence[Sequence[PreparedTeacher]]) -> tuple[PreparedTeacher, ...]:
    """Return each teacher with every signal that any of these jobs asks it for."""
    merged: dict[str, PreparedTeacher] = {}
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
