"""A job as a YAML file: read it, change it from the command line, check it, write it back.

    job.yaml ── YAML ──► paths of the file ──► --set a.b=c ──┬──► scaling:, run:   Ray's, as is
                                                             └──► job, or every mistake in it

The keys of the file are those of the job, plus `scaling:` and `run:`, the arguments of Ray's
`ScalingConfig` and `RunConfig`, and, for sweeps, `space:` and `tune:`, which other commands pass
over.

Paths: a relative path of a data set, a model, a tokenizer or the label store that exists relative
to the file's folder is taken from there, and made absolute. Any other is left as it is (a hub id,
a teacher's name, a path relative to the working directory), and so are paths given by `--set`. A
relative `labels.store`, `labels.cache` or `run.storage_path` is always taken from the file's
folder; a URI is no path.

YAML is read as data only, by the rules of YAML 1.2: `no` and `on` are texts, `1e-4` is a number.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import ValidationError

from raybrew.config import DistillJob, TrainJob
from raybrew.errors import ConfigError
from raybrew.job_mistakes import explain
from raybrew.job_paths import set_path
from raybrew.job_yaml import parse_yaml
from raybrew.paths import data_path, is_uri, user_path

__all__ = [
    "JobFile",
    "absolute_plain",
    "dump_yaml",
    "explain",
    "load_job",
    "resolve_paths",
    "set_path",
    "validate",
]

JobT = TypeVar("JobT", bound=DistillJob | TrainJob)

RAY_SECTIONS = ("scaling", "run")
SECTIONS = (*RAY_SECTIONS, "space", "tune")


@dataclass(frozen=True)
class JobFile(Generic[JobT]):
    """What a file asks for.

    Args:
        job: The job, checked.
        scaling: Arguments of Ray's ScalingConfig.
        run: Arguments of Ray's RunConfig.
        space: What a sweep is over, by path.
        tune: Arguments of Ray's TuneConfig.
        plain: The resolved file, with every default: `dump_yaml(plain)` can be loaded again.
    """

    job: JobT
    scaling: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, Any] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)


def load_job(
    kind: type[JobT], path: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> JobFile[JobT]:
    """Read a job from a YAML file.

    Args:
        kind: DistillJob or TrainJob.
        path: The file.
        overrides: Changes such as `distillation.temperature=4` or `teachers.a.weight=0.5`; the
            value is YAML, a list's element is named by its index or its `name`.

    Raises:
        ConfigError: The file can't be read, or what it says is no such job; names every mistake.
    """
    file = user_path(path, "job file")
    values = _read(file)
    resolve_paths(values, file.absolute().parent)
    for override in overrides:
        target, equals, text = override.partition("=")
        if not equals or not target.strip():
            raise ConfigError(f"--set: expected path=value, got {override!r}")
        value = parse_yaml(text, f"--set {target.strip()}")
        set_path(values, target.strip(), value, kind, free=SECTIONS)
    mistakes: list[str] = []
    sections = {name: _ray_section(values, name, mistakes) for name in SECTIONS}
    job: JobT | None = None
    try:
        job = kind.model_validate(values)
    except ValidationError as error:
        mistakes.insert(0, explain(error, kind, extra=SECTIONS))
    if job is None or mistakes:
        lines = "\n".join(mistakes)
        raise ConfigError(f"{file}: expected a {kind.__name__}, got\n{lines}")
    plain = job.to_plain() | {name: section for name, section in sections.items() if section}
    return JobFile(job, **sections, plain=plain)


def validate(kind: type[JobT], values: Mapping[str, Any]) -> JobT:
    """Build a job from values.

    Raises:
        ConfigError: With every mistake in the values.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, kind)) from None


def dump_yaml(job: DistillJob | TrainJob | Mapping[str, Any]) -> str:
    """Return the resolved job (or plain values) as YAML that `load_job` reads."""
    plain = dict(job) if isinstance(job, Mapping) else job.to_plain()
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def absolute_plain(job: DistillJob | TrainJob) -> dict[str, Any]:
    """Return a job as plain values that mean the same in any working directory.

    Its relative paths are made absolute, so that a run's `job.yaml` can be read from anywhere.
    """
    plain = job.to_plain()
    resolve_paths(plain, Path.cwd())
    return plain


def _read(file: Path) -> dict[str, Any]:
    if file.is_dir():
        raise ConfigError(f"{file}: expected a YAML file, got a folder")
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{file}: expected a YAML file, got no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: expected a YAML file in UTF-8, got: {error}") from None
    values = parse_yaml(text, str(file))
    if not isinstance(values, dict):
        got = "an empty file" if values is None else type(values).__name__
        raise ConfigError(f"{file}: expected a mapping (tasks, training, …), got {got}")
    return values


def _ray_section(values: dict[str, Any], name: str, mistakes: list[str]) -> dict[str, Any]:
    """Take the arguments of one of Ray's objects out of the values."""
    section = values.pop(name, None)
    if section is not None and not isinstance(section, dict):
        mistakes.append(f"{name}: expected a mapping, got {section!r}")
        return {}
    return section or {}


def resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Make a job's relative paths absolute, in place; see above which are taken from the folder."""
    tasks, teachers = _mappings(values.get("tasks")), _mappings(values.get("teachers"))
    names = [teacher.get("name") for teacher in teachers]
    for task in tasks:
        _resolve(task, ("train", "eval"), folder, data=True)
        if isinstance(task.get("transfer"), list):
            sources = dict(enumerate(task["transfer"]))
            _resolve(sources, list(sources), folder, data=True)
            task["transfer"] = list(sources.values())
    for teacher in teachers:
        _resolve(teacher, ("model",), folder)
    for section in _mappings([values.get("student"), values.get("model")]):
        of_teacher = section.get("tokenizer_from") in names
        _resolve(section, ("model",) if of_teacher else ("model", "tokenizer_from"), folder)
        layers = section.get("layers_from")
        if isinstance(layers, list) and layers and layers[0] not in names:
            source = {"of": layers[0]}
            _resolve(source, ("of",), folder)
            section["layers_from"] = [source["of"], *layers[1:]]
    if isinstance(values.get("distillation"), str):  # a JSON file of TextBrewer's
        _resolve(values, ("distillation",), folder)
    # These may have to be made: nothing else than a folder can be meant.
    for name, key in (("labels", "store"), ("labels", "cache"), ("run", "storage_path")):
        for section in _mappings([values.get(name)]):
            path = section.get(key)
            if isinstance(path, str) and path and not path.startswith("~") and not is_uri(path):
                section[key] = os.path.normpath(folder / path)


def _mappings(section: Any) -> list[dict[str, Any]]:
    """Return the mappings of a section; whatever else stands there is for `explain` to say."""
    return [each for each in section if isinstance(each, dict)] if isinstance(section, list) else []


def _resolve(
    section: dict[Any, Any], keys: Sequence[Any], folder: Path, *, data: bool = False
) -> None:
    for key in keys:
        value = section.get(key)
        if isinstance(value, str) and value and "\0" not in value and len(value) < 1024:
            target = os.path.abspath(folder / value)
            path = data_path(target)[0] if data else target
            if os.path.exists(path):
                section[key] = target
