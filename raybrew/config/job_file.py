"""Jobs as YAML files: read, override, check, write.

    job.yaml ── YAML ──► paths of the file ──► --set a.b=c ──┬──► scaling:, run:   Ray's, as is
                                                             └──► job, or every mistake in it

The keys of the file are those of the job, plus `scaling:` and `run:`, the arguments of Ray's
`ScalingConfig` and `RunConfig`, and, for sweeps, `space:` and `tune:`, which other commands ignore.

Paths: a relative path of a data set, a model, a tokenizer or the label store that exists relative
to the file's folder is taken from there, and made absolute. Any other is left as it is (a hub id,
a teacher's name, a path relative to the working directory), and so are paths given by `--set`. A
relative `labels.store`, `labels.cache` or `run.storage_path` is always taken from the file's
folder; a URI is no path.

YAML is read as data only, by the rules of YAML 1.2: `no` and `on` are texts, `1e-4` is a number.
"""

import os
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import ValidationError
from yaml.constructor import ConstructorError

from raybrew.config.distillation import TEXTBREWER_KEYS
from raybrew.config.job import DistillJob, TrainJob, set_path
from raybrew.config.mistakes import explain, shown
from raybrew.config.section import data_path, is_uri, user_path
from raybrew.errors import ConfigError, collect_mistakes

JobT = TypeVar("JobT", bound=DistillJob | TrainJob)

_SECTIONS = {
    "scaling": "Arguments of Ray's ScalingConfig: num_workers, use_gpu, resources_per_worker, …",
    "run": "Arguments of Ray's RunConfig: name and storage_path of the run's folder, …",
    "space": "What a sweep is over, by path: `distillation.temperature: {loguniform: [1, 10]}`.",
    "tune": "Arguments of Ray's TuneConfig: num_samples, scheduler, search_alg, …",
}
SECTIONS = tuple(_SECTIONS)
"""Keys of a file besides those of the job."""


@dataclass(frozen=True)
class JobFile(Generic[JobT]):
    """What a file asks for.

    Args:
        job: The job, checked.
        scaling: Arguments of Ray's ScalingConfig.
        run: Arguments of Ray's RunConfig.
        space: What a sweep is over, by path.
        tune: Arguments of Ray's TuneConfig.
        built: By section, what `load_job` was asked to build of it.
    """

    job: JobT
    scaling: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, Any] = field(default_factory=dict)
    built: dict[str, Any] = field(default_factory=dict)

    @property
    def plain(self) -> dict[str, Any]:
        """The resolved file, with every default: `dump_yaml(plain)` can be loaded again."""
        sections = {name: getattr(self, name) for name in SECTIONS}
        return self.job.to_plain() | {name: each for name, each in sections.items() if each}


def load_job(
    kind: type[JobT],
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    build: Mapping[str, Callable[[dict[str, Any]], Any]] | None = None,
) -> JobFile[JobT]:
    """Read a job from a YAML file.

    Args:
        kind: DistillJob or TrainJob.
        path: The file.
        overrides: Changes such as `distillation.temperature=4` or `teachers.a.weight=0.5`; the
            value is YAML, a list's element is named by its index or its `name`.
        build: By section, what builds Ray's object of its arguments.

    Raises:
        ConfigError: The file can't be read, or doesn't describe such a job; names every mistake.
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
    _check_kind(kind, values, file)
    mistakes: list[str] = []
    sections = {name: values.pop(name, None) for name in SECTIONS}
    sections = {name: {} if each is None else each for name, each in sections.items()}
    job: JobT | None = None
    with collect_mistakes(mistakes):
        job = validate(kind, values, extra=SECTIONS)
    built = {}
    for name, section in sections.items():
        with collect_mistakes(mistakes):
            if not isinstance(section, dict):
                raise ConfigError(f"{name}: expected a mapping, got {shown(section)}")
            if build and name in build:
                built[name] = build[name](section)
    if job is None or mistakes:
        lines = "\n".join(mistakes)
        raise ConfigError(f"{file}: expected a {kind.__name__}, got\n{lines}")
    return JobFile(job, **sections, built=built)


def _check_kind(
    kind: type[DistillJob] | type[TrainJob], values: Mapping[str, Any], file: Path
) -> None:
    """Refuse the file of a job of the other kind: each of its keys would be a mistake."""
    distils = not {"teachers", "student"}.isdisjoint(values)
    if kind is DistillJob and "model" in values and not distils:
        raise ConfigError(
            f"{file}: expected a DistillJob (teachers, student), got a TrainJob (model), which "
            "`raybrew train-teacher` runs"
        )
    if kind is TrainJob and distils and "model" not in values:
        raise ConfigError(
            f"{file}: expected a TrainJob (model), got a DistillJob (teachers, student), which "
            "`raybrew distill` runs"
        )


def validate(kind: type[JobT], values: Mapping[str, Any], extra: Iterable[str] = ()) -> JobT:
    """Build a job from values.

    Args:
        kind: DistillJob or TrainJob.
        values: Of its fields.
        extra: Keys of the file besides, which a misspelt key may mean.

    Raises:
        ConfigError: With every mistake in the values.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, kind, extra)) from None


def job_schema(kind: type[DistillJob] | type[TrainJob]) -> dict[str, Any]:
    """Return the JSON schema of a job file, for editors that complete and check as one types.

    Args:
        kind: what the file describes.

    Returns:
        A schema of draft 2020-12. It knows names, types and ranges; what fields require of each
        other, and the arguments of Ray's classes, are checked when the job is read.
    """
    schema = kind.model_json_schema()
    for name, description in _SECTIONS.items():
        if kind is DistillJob or name not in ("space", "tune"):
            of_ray = {"type": ["object", "null"], "description": description}
            schema["properties"][name] = of_ray
    if kind is DistillJob:
        forms = [
            schema["properties"]["distillation"],
            {"type": "string", "description": "JSON file of TextBrewer's DistillationConfig."},
            {
                "type": "object",
                "description": "TextBrewer's DistillationConfig.",
                "properties": {name: {} for name in TEXTBREWER_KEYS},
                "additionalProperties": False,
            },
        ]
        schema["properties"]["distillation"] = {"anyOf": forms}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


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


# Paths


def resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Make a job's relative paths absolute, in place; see above which are taken from the folder."""
    tasks, teachers = _mappings(values.get("tasks")), _mappings(values.get("teachers"))
    names = [teacher.get("name") for teacher in teachers]
    for task in tasks:
        _resolve(task, ("train", "eval"), folder, data=True)
        if isinstance(task.get("transfer"), list):
            task["transfer"] = list(task["transfer"])
            _resolve(task["transfer"], range(len(task["transfer"])), folder, data=True)
    for section in [*teachers, *_mappings([values.get("tracking")])]:
        _resolve(section, ("model", "baseline"), folder)
    for section in _mappings([values.get("student"), values.get("model")]):
        of_teacher = section.get("tokenizer_from") in names
        _resolve(section, ("model",) if of_teacher else ("model", "tokenizer_from"), folder)
        layers = section.get("layers_from")
        if isinstance(layers, list) and layers and layers[0] not in names:
            section["layers_from"] = list(layers)
            _resolve(section["layers_from"], (0,), folder)
    if isinstance(values.get("distillation"), str):  # a JSON file of TextBrewer's
        _resolve(values, ("distillation",), folder)
    # These may have to be made: nothing else than a folder can be meant.
    for name, key in (("labels", "store"), ("labels", "cache"), ("run", "storage_path")):
        for section in _mappings([values.get(name)]):
            path = section.get(key)
            if isinstance(path, str) and path and not path.startswith("~") and not is_uri(path):
                section[key] = os.path.normpath(folder / path)


def _mappings(section: Any) -> list[dict[str, Any]]:
    """Return the mappings of a section; `explain` reports anything else."""
    return [each for each in section if isinstance(each, dict)] if isinstance(section, list) else []


def _resolve(section: Any, keys: Iterable[Any], folder: Path, *, data: bool = False) -> None:
    for key in keys if isinstance(section, (dict, list)) else ():
        value = section[key] if isinstance(section, list) else section.get(key)
        if isinstance(value, str) and value and "\0" not in value and len(value) < 1024:
            target = os.path.abspath(folder / value)
            if os.path.exists(data_path(target)[0] if data else target):
                section[key] = target


# YAML


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


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of one YAML document.

    Args:
        text: The document.
        source: Where it comes from, for messages.

    Raises:
        ConfigError: It isn't YAML, holds a key twice, or asks for more than data.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise ConfigError(f"{source}:{place} expected YAML, got: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        got = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{source}: expected YAML, got: {got}") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without the surprises of YAML 1.1."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  filled below, for this class alone

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that comes twice, of which PyYAML would keep the last."""
        if not isinstance(node, yaml.MappingNode):  # `!!map [1]`, which PyYAML refuses
            return super().construct_mapping(node, deep=deep)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise ConstructorError(
                        None,
                        None,
                        f"the key {key.value!r} stands in line {seen[key.value]} already",
                        key.start_mark,
                    )
                seen[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Refuse a value that isn't of its own tag, as `!!bool maybe`; PyYAML just breaks there."""
        try:
            return super().construct_object(node, deep=deep)
        except (LookupError, AttributeError, TypeError, ValueError):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            got = repr(node.value) if isinstance(node, yaml.ScalarNode) else "a value"
            wrong = f"{got}, which is no {tag}"
            raise ConstructorError(None, None, wrong, node.start_mark) from None


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )
