"""From a row to its jobs, as plain values: those of its teachers, and its own.

    row ──► [teacher 1, …, teacher n,] the row itself        each a job file of raybrew's

A run lies in `<runs>/<benchmark>-<name>`; what a teacher's run leaves there is what students ask.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.textbrewer.rows import Row
from experiments.textbrewer.students import MODELS
from raybrew.config import DistillJob, TrainJob

SEVERAL = {"num_epochs": 10, "learning_rate": 2e-5}
"""How one model of the teachers' size learns from several of them."""


@dataclass(frozen=True)
class Step:
    """One run that a row needs.

    Args:
        name: of the run.
        kind: what `values` are.
        values: the job, with Ray's sections.
    """

    name: str
    kind: type[DistillJob] | type[TrainJob]
    values: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.values["run"]["storage_path"], self.name)


def steps_of(row: Row, runs: Path) -> list[Step]:
    """Return the jobs of a row, in the order in which they run.

    Args:
        row: which.
        runs: folder of the runs.
    """
    if row.kind == "teacher":
        return [_teacher(row, 1, runs)]
    if row.kind == "alone":
        section = row.origin.section(row.base, None)
        return [_trained(row, f"{row.benchmark}-{row.name}", section, 0, runs)]
    teachers = [_teacher(row, number, runs) for number in range(1, row.teachers + 1)]
    return [*teachers, _distilled(row, teachers, runs)]


def _teacher(row: Row, number: int, runs: Path) -> Step:
    name = f"{row.benchmark}-{row.base}" + (f"-{number}" if number > 1 else "")
    return _trained(row, name, {"model": MODELS[row.base]}, number - 1, runs)


def _trained(row: Row, name: str, model: Mapping[str, Any], seed: int, runs: Path) -> Step:
    # A student with random weights takes the steps of distillation to learn anything.
    recipe = row.data.student if "preset" in model else row.data.teacher
    values = {
        "tasks": [_task(row)],
        "model": dict(model),
        "training": {**recipe, "seed": seed},
        "scaling": {"num_workers": 1, "use_gpu": True},
        "run": {"name": name, "storage_path": str(runs.absolute())},
    }
    return Step(name, TrainJob, values)


def _distilled(row: Row, teachers: list[Step], runs: Path) -> Step:
    names = [f"teacher-{number}" for number in range(1, len(teachers) + 1)]
    # One GPU holds all: the student has half of it, the teachers the other half.
    share = 0.5 / len(teachers)
    training = dict(row.data.student)
    if row.base in row.data.constant_rate_with:
        training["lr_scheduler"] = "constant_with_warmup"
    if len(teachers) > 1:
        training |= SEVERAL
    task = _task(row)
    if row.augmented:
        task["transfer"] = list(row.data.transfer)
    name = f"{row.benchmark}-{row.name}"
    values = {
        "tasks": [task],
        "teachers": [
            {
                "name": name,
                "task": row.benchmark,
                "model": str(teacher.folder.absolute() / "student"),
                "resources": {"CPU": 1, "GPU": share},
            }
            for name, teacher in zip(names, teachers, strict=True)
        ],
        "student": row.origin.section(row.base, names[0]),
        "distillation": {"temperature": row.data.temperature, "matches": list(row.origin.matches)},
        "training": training,
        "labels": {"store": str(runs.absolute() / "labels"), **_room(row)},
        "scaling": {
            "num_workers": 1,
            "use_gpu": True,
            "resources_per_worker": {"CPU": 1, "GPU": 0.5},
        },
        "run": {"name": name, "storage_path": str(runs.absolute())},
    }
    return Step(name, DistillJob, values)


def _room(row: Row) -> dict[str, Any]:
    # Hidden states of all layers of hundreds of thousands of texts are more than most disks hold:
    # what has no room is computed again in each epoch.
    if not row.origin.matches:
        return {}
    return {"dtype": "bfloat16", "max_bytes": "200GB", "on_full": "go_on"}


def _task(row: Row) -> dict[str, Any]:
    return {"name": row.benchmark, **row.data.task}
