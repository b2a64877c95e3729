"""Ray's own configs, built by Ray from the `run:` and `scaling:` of a job file.

The names of arguments are those of Ray's signatures, their types those of its annotations, and
Ray's error is shown. Types stand here only where Ray's are wider than what a run can use, or where
Ray finds a value out late.

Ray is imported where an object of its is made: a mistake in a job file doesn't wait for it.
"""

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)

from raybrew.config.mistakes import expectation, path_of, shown
from raybrew.errors import ConfigError, collect_mistakes, did_you_mean

if TYPE_CHECKING:
    from ray import train

MAX_FAILURES = 3
"""How often training restarts after failed ranks, where the job doesn't say."""
RUNS = "runs"
"""Folder of runs in the working directory, where neither the job nor Ray's RunConfig names one."""
NOTHING_TO_RESUME = "resume: expected run.name to say which run to go on with, got none"

Types = Mapping[str, Any]
"""By name, types of arguments that take the place of Ray's annotations."""

_DEPRECATED = "DEPRECATED"
"""The default of arguments that Ray's classes no longer take."""
_LONGEST_NAME = 200
"""Bytes: file systems end at 255, and `raybrew label` appends to it."""
_APPENDED = re.compile(r"-label-\d{8}-\d{6}\Z")
_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)


def _is_text(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError(f"expected a text, got {value!r}")
    return value


def _is_name(value: str) -> str:
    size = len(_APPENDED.sub("", value).encode(errors="replace"))
    if value.strip() in ("", ".", "..") or {"/", "\0"} & set(value) or size > _LONGEST_NAME:
        raise ValueError(
            f"expected a name without slashes, of at most {_LONGEST_NAME} bytes, not . or .., got "
            f"{shown(value)}"
        )
    return value


_Name: Any = Annotated[str, AfterValidator(_is_name)]
_Text: Any = Annotated[str, AfterValidator(_is_text)]
_Count: Any = Annotated[int, Field(ge=1)]
RUN: Types = {
    "name": _Name | None,
    "storage_path": _Text | None,
    "stop": dict[str, float] | None,
    "verbose": Annotated[int | None, Field(ge=0, le=3)],
}
SCALING: Types = {
    "num_workers": _Count | tuple[_Count, _Count],
    "use_gpu": bool,
    "resources_per_worker": dict[str, Annotated[float, Field(ge=0)]] | None,
    "placement_strategy": Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"],
}


def scaling_config_from(values: Mapping[str, Any]) -> "train.ScalingConfig | None":
    """Return Ray's ScalingConfig with the arguments of a job file's `scaling:`.

    Raises:
        ConfigError: Ray's class has no such argument, or refuses it.
    """
    if not values:
        return None
    from ray import train

    return build_ray_object(train.ScalingConfig, "scaling", values, SCALING)


def run_config_from(values: Mapping[str, Any], *, resume: bool = False, library: Any = None) -> Any:
    """Return Ray's RunConfig with the arguments of a job file's `run:`.

    `failure_config` and `checkpoint_config` are mappings of the arguments of Ray's classes.

    Args:
        values: the arguments.
        resume: whether they must name a run to resume.
        library: `ray.tune` for the RunConfig of a sweep; `ray.train` if left out.

    Raises:
        ConfigError: Ray's class has no such argument, or refuses it; or there is no name of a run
            to resume.
    """
    if resume and values.get("name") is None:
        raise ConfigError(NOTHING_TO_RESUME)
    if not values:
        return None
    from ray import train

    library = library or train
    given = {name: value for name, value in values.items() if value is not None}
    arguments = {"storage_path": RUNS, **values} | {"storage_path": given.get("storage_path", RUNS)}
    if library is train:
        arguments = {"failure_config": {"max_failures": MAX_FAILURES}, **arguments}
    mistakes: list[str] = []
    nested = {
        "failure_config": library.FailureConfig,
        "checkpoint_config": library.CheckpointConfig,
    }
    for name, kind in nested.items():
        if isinstance(arguments.get(name), Mapping):
            given, arguments[name] = arguments[name], None
            with collect_mistakes(mistakes):
                arguments[name] = build_ray_object(kind, f"run.{name}", given)
    with collect_mistakes(mistakes):
        built = build_ray_object(library.RunConfig, "run", arguments, RUN)
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return built


def build_ray_object(
    kind: Callable[..., Any],
    section: str,
    arguments: Mapping[str, Any] | list[Any],
    types: Types | None = None,
) -> Any:
    """Return what one of Ray's classes or functions makes of arguments from a job file.

    Args:
        kind: the class or function.
        section: where the arguments stand in the file, for messages.
        arguments: by name, or in the order of the signature, as YAML has them.
        types: of arguments that Ray's annotations are too wide for.

    Raises:
        ConfigError: an argument that Ray doesn't have, of another type, or that Ray refuses.
    """
    taken = check_arguments(kind, section, arguments, types)
    try:
        return kind(**taken)
    except Exception as error:  # Ray doesn't document what it raises; nothing runs yet
        raise ConfigError(
            f"{section}: Ray's {kind.__name__} refused {arguments!r}: {error}"
        ) from error


def check_arguments(
    kind: Callable[..., Any],
    section: str,
    arguments: Mapping[str, Any] | list[Any],
    types: Types | None = None,
) -> dict[str, Any]:
    """Check arguments against a signature; return them, lists as tuples where it has tuples.

    Raises:
        ConfigError: an unknown name or a value of another type; with every mistake.
    """
    parameters = inspect.signature(kind).parameters.values()
    known = {
        each.name: each.annotation
        for each in parameters
        if each.default != _DEPRECATED and each.annotation is not object
    }
    if isinstance(arguments, list):
        if len(arguments) > len(known):
            takes = f"Ray's {kind.__name__} takes {', '.join(known)}"
            raise ConfigError(f"{section}: {takes}; got {arguments!r}")
        arguments = dict(zip(known, arguments, strict=False))
    mistakes: list[str] = []
    taken: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in known:
            mistakes.append(
                f"{section}.{name}: expected an argument of Ray's {kind.__name__} "
                f"({', '.join(known)}){did_you_mean(name, known)}"
            )
            continue
        try:
            type_ = (types or {}).get(name) or _resolved(known[name], kind)
            taken[name] = _validated(type_, value)
        except ValidationError as error:
            mistakes.append(_in_words(f"{section}.{name}", value, error))
        except (
            PydanticUserError,
            NameError,
        ):  # of a package that Ray imports for type checks alone
            taken[name] = value
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return taken


def _resolved(annotation: Any, kind: Callable[..., Any]) -> Any:
    modules = ("ray.train", "ray.tune", "ray.tune.search.sample", kind.__module__)
    names: dict[str, Any] = {"ray": sys.modules["ray"]}
    for module in modules:
        names |= vars(sys.modules[module]) if module in sys.modules else {}
    return get_type_hints(SimpleNamespace(__annotations__={"it": annotation}), names)["it"]


def _validated(type_: Any, value: Any) -> Any:
    adapter = TypeAdapter(type_, config=_STRICT)
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        # YAML has no tuples.
        if not isinstance(value, list) or all(e["type"] != "tuple_type" for e in error.errors()):
            raise
        value = tuple(value)
        adapter.validate_python(value)
    return value


def _in_words(place: str, value: Any, error: ValidationError) -> str:
    mistakes = error.errors(include_url=False)
    if len(mistakes) == 1:
        (mistake,) = mistakes
        return f"{place}{path_of(mistake['loc'])}: {expectation(mistake)}"
    # Of a union: what each of its types expects.
    each = dict.fromkeys(expectation(one, got=False) for one in mistakes)
    words = " or ".join(one.removeprefix("expected ") for one in each)
    return f"{place}: expected {words}, got {shown(value)}"
