"""What of a job's files is missing, found without reading one: seconds before anything is loaded.

    check_paths(job)   tasks: train, eval, transfer     a file, a folder, or perhaps a hub id
                       teachers: model                  a folder with config.json, or a hub id
                       student: model, layers_from      the same

What is in the files is checked where they are read, and so is what a hub id stands for.
"""

import re
from collections.abc import Iterator
from os.path import isdir, isfile  # False for what may not be looked at
from pathlib import Path

from raybrew.config.job import DistillJob, TrainJob, is_model_path
from raybrew.config.models import Student
from raybrew.config.section import data_path, held_by, names_in, user_path
from raybrew.errors import ConfigError, DataError, did_you_mean

DATA_FILES = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "conll",
}
"""By the ending of a file of rows, its form."""
DATA_ID = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?")
"""A data set on the hub."""
MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
"""A model on the hub."""


def check_paths(job: DistillJob | TrainJob) -> None:
    """Refuse files and folders that aren't there.

    Raises:
        DataError: of a task's data.
        ConfigError: of a model.
    """
    for task in job.tasks:
        what = f"tasks[{task.name}]"
        named = {f"{what}.train": task.train, f"{what}.eval": task.eval}
        named |= {f"{what}.transfer[{i}]": each for i, each in enumerate(task.transfer)}
        for field, source in named.items():
            if isinstance(source, str):
                check_source(source, field)
    for path, field in _models(job):
        locate(path, field, ("config.json",), "a config.json")


def _models(job: DistillJob | TrainJob) -> Iterator[tuple[str, str]]:
    """Yield the paths of models, each with its field."""
    if isinstance(job, TrainJob):
        yield from _models_of(job.model, "model", ())
        return
    hosts = job.hosts()
    for name, teacher in hosts.items():
        yield teacher.model_path, f"teachers[{name}].model"
    yield from _models_of(job.student, "student", tuple(hosts))


def _models_of(student: Student, what: str, teachers: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if student.model is not None:
        yield student.model, f"{what}.model"
    lender = student.layers_from[0] if student.layers_from else None
    if lender is not None and lender not in teachers and is_model_path(lender):
        yield lender, f"{what}.layers_from"


def check_source(source: str, what: str) -> None:
    """Refuse a data set that is neither here nor can be meant as a hub id.

    Args:
        source: a path or hub id, as `raybrew.data.sources.load_source` takes it.
        what: the job's field that gave it, for messages.

    Raises:
        DataError: it is neither.
    """
    path, _ = data_path(source)
    place = user_path(path, what, DataError)
    if place.exists():
        return
    is_file = place.suffix.lower() in DATA_FILES
    if is_file or not DATA_ID.fullmatch(path) or path.startswith((".", "/", "~")):
        raise missing_data(place, what)


def missing_data(place: Path, what: str) -> DataError:
    """Build the error for a data set that isn't there, with the nearest names that are."""
    parent = place.parent
    if not parent.is_dir():
        return DataError(f"{what}: expected a data set at {place}, but there is no folder {parent}")
    hint = did_you_mean(place.name, names_in(parent)) or f"; {parent} has {held_by(parent)}"
    return DataError(f"{what}: expected a data set at {place}, got no such file{hint}")


def locate(path: str, what: str, patterns: tuple[str, ...], noun: str) -> str:
    """Return the folder, checked to hold one of the files, or a hub id.

    Args:
        path: as it was given.
        what: field of the job that gave it, for messages.
        patterns: of the files; a folder without any of them is wrong.
        noun: what the files hold.

    Raises:
        ConfigError: it is neither.
    """
    folder = user_path(path, what)
    if folder.is_dir():
        if not any(isfile(file) for pattern in patterns for file in folder.glob(pattern)):
            raise ConfigError(
                f"{what}: expected a folder with {noun}, got {path!r}, which holds "
                f"{held_by(folder)}"
            )
        return str(folder)
    if folder.exists():
        raise ConfigError(
            f"{what}: expected a folder with {noun} or a hub id, got the file {path!r}"
        )
    # `runs/a` may be a hub id; where there is a folder `runs` it is a misspelt path.
    if not MODEL_ID.fullmatch(path) or ("/" in path and folder.parent.is_dir()):
        raise ConfigError(
            f"{what}: expected a folder with {noun} or a hub id, got {path!r}, which doesn't "
            f"exist{_sibling(folder)}"
        )
    return path


def _sibling(folder: Path) -> str:
    if not folder.parent.is_dir():
        return ""
    names = [name for name in names_in(folder.parent) if isdir(folder.parent / name)]
    return did_you_mean(folder.name, names, count=1)
