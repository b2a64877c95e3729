"""Jobs as YAML files: read, override, check, explain every mistake, write."""

import difflib
import os
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml.constructor import ConstructorError

from raybrew.config import DistillJob, TrainJob
from raybrew.config.job import section_of, set_path
from raybrew.config.paths import data_path, is_uri, user_path
from raybrew.errors import ConfigError

# YAML as data: no duplicate keys, no code, the plain values of YAML 1.2, errors in one line.


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


# Every mistake of a job in words: one line each, with path, expected, got, and nearest names.

# What pydantic calls things, in the words of a YAML file.
_WORDS = (
    (r"^Input should be (?=greater|less|a multiple)", "expected a number "),
    (r"^Input should be ", "expected "),
    (r"^(Tuple|List) should have (.*) item(s?) after validation.*", r"expected \2 element\3"),
    (r"^(String|Dictionary) should have ", r"expected a \1 with "),
    (r"^String should match pattern ", "expected a name that matches "),
    (r"a valid dictionary or instance of \w+", "a mapping"),
    (r"a valid (dictionary|mapping)", "a mapping"),
    (r"a valid (tuple|list|array)", "a list"),
    (r"a valid string", "a text"),
    (r"a valid boolean.*", "true or false"),
    (r"a valid (integer|number), .*", r"a valid \1"),
)
_FORMS = ("float", "bool")
"""Of a value of `Options`."""


def explain(error: ValidationError, root_model: type[BaseModel], extra: Iterable[str] = ()) -> str:
    """Return one line for each mistake: `tasks[0].txt: unknown key …, did you mean 'text'?`.

    Args:
        error: What pydantic found.
        root_model: The model that refused the values.
        extra: Keys of the top level that are known besides the model's.
    """
    mistakes = error.errors(include_url=False)
    places = [tuple(mistake["loc"]) for mistake in mistakes]
    # A list whose elements were refused counts as too short to pydantic; the elements say it.
    mistakes = [
        mistake
        for mistake, place in zip(mistakes, places, strict=True)
        if mistake["type"] != "too_short"
        or not any(len(other) > len(place) and other[: len(place)] == place for other in places)
    ]
    lines = [_line(mistake, root_model, tuple(extra)) for mistake in _of_values(mistakes)]
    return "\n".join(dict.fromkeys(lines))


def _of_values(mistakes: Iterable[Any]) -> list[dict[str, Any]]:
    """Take out of the places what only pydantic knows of: a key, the forms of a value."""
    found = [dict(mistake) for mistake in mistakes]
    places = {tuple(mistake["loc"]) for mistake in found}
    for mistake in found:
        *above, last = mistake["loc"] or ("",)
        if last == "[key]":
            mistake |= {"loc": above[:-1], "type": "form", "msg": "expected texts as keys"}
        elif last in _FORMS and {(*above, form) for form in _FORMS} <= places:
            said = "expected a number, or true or false"
            mistake |= {"loc": above, "type": "form", "msg": said}
    return found


def _line(mistake: dict[str, Any], root: type[BaseModel], extra: Sequence[str]) -> str:
    place = tuple(mistake["loc"])
    path = _path(place)
    prefix = f"{path}: " if path else ""
    kind, got = mistake["type"], mistake["input"]
    if kind == "extra_forbidden":
        parent = _section(root, place[:-1])
        known = sorted(parent.model_fields) if parent else []
        known += extra if len(place) == 1 else ()
        return f"{prefix}unknown key, expected {_one_of(str(place[-1]), known)}"
    if kind == "missing":
        return f"{prefix}expected a value{_meaning(root, place)}, got none"
    if kind == "value_error":  # our own, which says what was expected and got
        return prefix + mistake["msg"].removeprefix("Value error, ")
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", mistake["ctx"]["expected"])
        return f"{prefix}expected {_one_of(got, options)}, got {_shown(got)}"
    text = mistake["msg"]
    for pattern, words in _WORDS:
        text = re.sub(pattern, words, text)
    text = text if text.startswith("expected ") else f"expected otherwise: {text}"
    return f"{prefix}{text}, got {_shown(got)}"


def _path(place: Sequence[int | str]) -> str:
    parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in place]
    return "".join(parts).removeprefix(".")


def _section(root: type[BaseModel], place: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the model that holds the values at a place."""
    model: type[BaseModel] | None = root
    for key in place:
        if isinstance(key, str):
            known = model.model_fields.get(key) if model else None
            model = section_of(known.annotation) if known else None
    return model


def _meaning(root: type[BaseModel], place: Sequence[int | str]) -> str:
    parent = _section(root, place[:-1])
    known = parent.model_fields.get(str(place[-1])) if parent else None
    return f" ({known.description.rstrip('.')})" if known and known.description else ""


def _one_of(got: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(got, known, n=1) if isinstance(got, str) else []
    listed = f"one of {', '.join(known)}" if len(known) != 1 else repr(known[0])
    return listed + (f"; did you mean {near[0]!r}?" if near else "")


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


# A job as a YAML file: read it, change it from the command line, check it, write it back.
#
#     job.yaml ── YAML ──► paths of the file ──► --set a.b=c ──┬──► scaling:, run:   Ray's, as is
#                                                              └──► job, or every mistake in it
#
# The keys of the file are those of the job, plus `scaling:` and `run:`, the arguments of Ray's
# `ScalingConfig` and `RunConfig`, and, for sweeps, `space:` and `tune:`, which other commands pass
# over.
#
# Paths: a relative path of a data set, a model, a tokenizer or the label store that exists relative
# to the file's folder is taken from there, and made absolute. Any other is left as it is (a hub id,
# a teacher's name, a path relative to the working directory), and so are paths given by `--set`. A
# relative `labels.store`, `labels.cache` or `run.storage_path` is always taken from the file's
# folder; a URI is no path.
#
# YAML is read as data only, by the rules of YAML 1.2: `no` and `on` are texts, `1e-4` is a number.

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
