"""The whole job, what its sections require of each other, and paths into its values."""

import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from os.path import isdir  # False for what may not be looked at
from typing import Any

from pydantic import BaseModel, Field, field_validator, model_validator

from raybrew.config.distillation import DistillationConfig
from raybrew.config.mistakes import other_name, section_of
from raybrew.config.models import Student, Teacher
from raybrew.config.section import Many, Section
from raybrew.config.task import Task
from raybrew.config.training import LabelConfig, MixingConfig, TrackingConfig, TrainingConfig
from raybrew.errors import ConfigError, did_you_mean

_FILE = re.compile(r"\.(json|safetensors|bin|txt|model|jinja|py|md)$", re.IGNORECASE)
"""Endings of the files that transformers writes into a model's folder."""


class _Job(Section):
    """What training with and without teachers have in common."""

    tasks: Many[Task] = Field(min_length=1, description="Tasks of the student.")
    training: TrainingConfig = Field(
        default_factory=lambda: TrainingConfig(), description="Steps, optimizer, seed."
    )
    mixing: MixingConfig = Field(
        default_factory=lambda: MixingConfig(),
        description="How one run draws from several tasks.",
    )
    tracking: TrackingConfig = Field(
        default_factory=lambda: TrackingConfig(), description="Where the run is logged."
    )

    @field_validator("tasks")
    @classmethod
    def _task_names(cls, tasks: Sequence[Task]) -> Sequence[Task]:
        _unique([task.name for task in tasks])
        files = [task.name for task in tasks if _FILE.search(task.name)]
        if files and len(tasks) > 1:
            raise ValueError(
                f"expected no task named like a file, got {', '.join(files)}: a student of "
                "several tasks has a folder for each of them beside files such as config.json"
            )
        return tasks

    def to_plain(self) -> dict[str, Any]:
        """Return the job as values that YAML and JSON can hold."""
        return self.model_dump(mode="json")


class TrainJob(_Job):
    """Supervised training of one model, without teachers: how teachers are made."""

    model: Student = Field(description="The model to train.")

    @field_validator("tasks")
    @classmethod
    def _labelled(cls, tasks: Sequence[Task]) -> Sequence[Task]:
        for task in tasks:
            if task.transfer:
                raise ValueError(
                    f"task {task.name!r}: expected it without `transfer`, whose rows only teachers "
                    "label, in a job without teachers"
                )
        return tasks


class DistillJob(_Job):
    """Distillation of teachers into one student."""

    teachers: Many[Teacher] = Field(min_length=1, description="The models to learn from.")
    student: Student = Field(description="The model to train.")
    distillation: DistillationConfig = Field(
        default_factory=lambda: DistillationConfig(), description="The objective."
    )
    labels: LabelConfig = Field(default_factory=lambda: LabelConfig(), description="The store.")

    @model_validator(mode="after")
    def _references(self) -> "DistillJob":
        names = [teacher.name for teacher in self.teachers]
        _unique(names, "teachers: ")
        tasks = [task.name for task in self.tasks]
        for teacher in self.teachers:
            if teacher.task not in tasks:
                raise ValueError(
                    f"teacher {teacher.name!r}: expected a task of this job "
                    f"({', '.join(tasks)}), got {teacher.task!r}"
                )
            others = [
                t for t in self.teachers_of(teacher.task) if t.weight > 0 and t is not teacher
            ]
            if teacher.on_loss == "drop" and not others:
                raise ValueError(
                    f"teacher {teacher.name!r}: on_loss: drop needs another teacher of task "
                    f"{teacher.task!r} with a weight above 0 to go on with, got none"
                )
        for task in tasks:
            if not any(t.task == task and t.weight > 0 for t in self.teachers):
                raise ValueError(
                    f"task {task!r}: expected a teacher with a weight above 0, got none"
                )
        source = self.student.layers_from[0] if self.student.layers_from else None
        models = list(self.hosts())
        if source is not None and source not in models and not is_model_path(source):
            raise ValueError(
                f"student.layers_from: expected a teacher of this job with a model "
                f"({', '.join(models) or 'it has none'}) or the path of a model, got {source!r}"
            )
        return self

    def hosts(self) -> dict[str, Teacher]:
        """Return the teachers that are models, by name, in the job's order."""
        return {teacher.name: teacher for teacher in self.teachers if teacher.model is not None}

    def objective_of(self, task: str) -> DistillationConfig:
        """Return the objective of a task: the job's, with what the task changes of it."""
        (changes,) = (each.distillation for each in self.tasks if each.name == task)
        if changes is None:
            return self.distillation
        return self.distillation.model_copy(
            update={name: getattr(changes, name) for name in changes.model_fields_set}
        )

    def teachers_of(self, task: str) -> tuple[Teacher, ...]:
        """Return the teachers of a task, in the job's order."""
        return tuple(teacher for teacher in self.teachers if teacher.task == task)


def is_model_path(name: str) -> bool:
    """Whether `layers_from` names a model by its path, where it names no teacher of the job.

    A name without a slash is one where there is such a folder: it is no hub id, since a teacher
    whose name is misspelt would be taken for one.
    """
    return "/" in name or isdir(name)


def _unique(names: list[str], what: str = "") -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{what}expected different names, got {', '.join(twice)} twice")


# Paths into a job's values, such as `teachers.a.weight`: how `--set` and sweeps change them.


def set_path(
    values: dict[str, Any],
    path: str,
    value: Any,
    kind: type[BaseModel],
    *,
    free: Iterable[str] = (),
) -> None:
    """Set the value at a path, in place.

    Args:
        values: Nested mappings and lists.
        path: Keys joined by dots; an element of a list by its index or its `name`.
        value: What to set.
        kind: Model of the values: its keys may be set where `values` lacks them.
        free: Further keys of the top level, which hold mappings of any keys.

    Raises:
        ConfigError: There is nothing at the path; names the nearest keys.
    """
    steps = path.split(".")
    place: Any = values
    hint: Any = kind
    at = 0
    while True:
        key: Any
        if isinstance(place, list):
            key, used = _element(place, steps, at)
        else:
            key, used = _key(place, steps, at, hint, free if at == 0 else ()), 1
        at += used
        if at == len(steps):
            place[key] = value
            return
        hint = _inner(hint, key)
        if isinstance(place, dict) and place.get(key) is None:
            place[key] = {}
        place = place[key]


def get_path(values: dict[str, Any], path: str) -> Any:
    """Return the value at a path that `set_path` can set; None where there is none yet."""
    place: Any = values
    steps, at = path.split("."), 0
    while at < len(steps) and place is not None:
        if isinstance(place, list):
            key, used = _element(place, steps, at)
            place = place[key]
        else:
            place, used = place.get(steps[at]), 1
        at += used
    return place


def _inner(hint: Any, key: Any) -> Any:
    """Return the annotation of what `key` leads to."""
    section = section_of(hint)
    if section is None:
        return dict if _is_mapping(hint) else Any
    if isinstance(key, int):
        return section
    known = section.model_fields.get(key)
    return dict if known is None else known.annotation


def _is_mapping(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_mapping(part) for part in typing.get_args(hint))
    return hint is dict or origin is dict


def _element(place: list[Any], steps: list[str], at: int) -> tuple[int, int]:
    """Return the index of the element that the path names, and how many steps name it."""
    names = [each.get("name") if isinstance(each, dict) else None for each in place]
    for end in range(len(steps), at, -1):  # a name may hold dots; the longest wins
        name = ".".join(steps[at:end])
        if name in names:
            return names.index(name), end - at
    if steps[at].isdecimal() and int(steps[at]) < len(place):
        return int(steps[at]), 1
    known = [str(name) for name in names if name is not None]
    raise ConfigError(
        f"{'.'.join(steps)}: expected an element of {_at(steps, at)}, which has {len(place)}"
        + (f" ({', '.join(known)})" if known else "")
        + f", got {steps[at]!r}{did_you_mean(steps[at], known)}"
    )


def _key(place: Any, steps: list[str], at: int, hint: Any, free: Iterable[str]) -> str:
    key, path = steps[at], ".".join(steps)
    if not isinstance(place, dict):
        raise ConfigError(
            f"{path}: expected a mapping at {_at(steps, at)}, got {type(place).__name__}"
        )
    section = section_of(hint)
    known = {*(section.model_fields if section else map(str, place)), *free}
    if key and (key in known or (section is None and _is_mapping(hint))):
        return key
    if other_name(key):
        raise ConfigError(f"{path}: unknown key: {other_name(key)}")
    raise ConfigError(
        f"{path}: expected a key of {_at(steps, at)} ({', '.join(sorted(known))}), "
        f"got {key!r}{did_you_mean(key, known)}"
    )


def _at(steps: list[str], at: int) -> str:
    return ".".join(steps[:at]) or "the job"


def values_of(section: BaseModel) -> dict[str, Any]:
    """Return the fields of a section, its sections and lists of them as mappings and lists.

    Unlike `to_plain`, which is for files, it keeps data sets and callables: the model makes an
    equal job of it.
    """
    return {name: _value(getattr(section, name)) for name in type(section).model_fields}


def _value(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return values_of(value)
    if isinstance(value, (list, tuple)):
        return [_value(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _value(each) for key, each in value.items()}
    return value
