"""What the sections of a job are made of.

Frozen models, types of values, paths as users write them.
"""

import os
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

from datasets import Dataset
from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
)

from raybrew.errors import ConfigError, DataError, did_you_mean

# Paths as a user writes them: of a home, of any length, with a split behind them.

_SHOWN = 8
"""Names of a folder that a message lists."""


def user_path(
    path: str | os.PathLike[str],
    what: str,
    error: type[ConfigError] | type[DataError] = ConfigError,
) -> Path:
    """Return a path with its `~` replaced, such that one can ask whether something is there.

    Args:
        path: as it was written.
        what: the job's field or the argument that gave it, for messages.
        error: what to raise.

    Raises:
        ConfigError, DataError: there is no such home, or the system takes no such path.
    """
    try:
        place = Path(path).expanduser()
        place.exists()
    except RuntimeError:
        got = "no user of this name has a home"
    except OSError as refused:
        got = str(refused.strerror)
    else:
        return place
    raise error(f"{what}: expected a path, got {_short(path)}: {got}")


def is_uri(place: str) -> bool:
    """Return whether a place is named by a URI rather than a path."""
    return "://" in place or place.startswith("file:")


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none where it can't be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def held_by(folder: Path) -> str:
    """Return for a message what a folder holds, or that it can't be read."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as refused:
        return f"what can't be read ({refused.strerror})"
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "") or "nothing"


def try_to_write(folder: Path) -> None:
    """Find out whether files can be made in a folder, which is made if it isn't there.

    Raises:
        OSError: they can't.
    """
    folder.mkdir(parents=True, exist_ok=True)
    TemporaryDirectory(dir=folder, prefix=".raybrew-").cleanup()


def data_path(source: str) -> tuple[str, str]:
    """Part `path@split`; a path that exists as it is written has no split."""
    path, at, split = source.rpartition("@")
    if not at or "/" in split or _exists(source):
        return source, ""
    return path, split


def _exists(source: str) -> bool:
    try:
        return Path(source).expanduser().exists()
    except (RuntimeError, OSError):
        return False


def _short(path: str | os.PathLike[str]) -> str:
    text = str(path)
    return repr(text if len(text) <= 80 else text[:77] + "…")


# What the sections of a job are made of: frozen models, types of values, mistakes in words.


def _as_source(value: Any) -> Any:
    if isinstance(value, (str, Dataset)):
        return value
    if isinstance(value, Path):
        return str(value)
    got = type(value).__name__
    raise ValueError(f"expected a path, a hub id or a datasets.Dataset, got {got}")


def _source_to_plain(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return f"datasets.Dataset:{value._fingerprint}"


DataSource = Annotated[Any, BeforeValidator(_as_source), PlainSerializer(_source_to_plain)]
"""A path (parquet, jsonl, csv, a saved data set), `hub/id[:config][@split]`, or a live Dataset."""

T = TypeVar("T")
if TYPE_CHECKING:
    # A script may give a list.
    Many: TypeAlias = Sequence[T]
else:

    class Many:
        """Any number of values, kept as a tuple."""

        def __class_getitem__(cls, item: Any) -> Any:
            return tuple[item, ...]


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Dtype = Literal["float32", "float16", "bfloat16"]
Options = dict[str, float | bool]
ModelPath = Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, Path) else v)]
Trust = Annotated[
    bool,
    Field(
        description="Run code that comes with the files of its models, where transformers doesn't "
        "know their class; only what you have read and trust."
    ),
]


def import_path_of(value: Any) -> str | None:
    """Return how a config file names a callable."""
    if value is None or isinstance(value, str):
        return value
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', type(value).__module__)}:{name}"


def _as_import_path(value: Any) -> Any:
    if value is None or callable(value):
        return value
    if isinstance(value, str) and value.count(":") == 1 and all(value.split(":")):
        return value
    raise ValueError(f"expected a callable or its import path, package.module:name, got {value!r}")


ImportPath = Annotated[Any, BeforeValidator(_as_import_path), PlainSerializer(import_path_of)]
"""A function, given as such or as `package.module:name`; a saved config records the path."""


_SIZE = re.compile(r"([0-9]+(\.[0-9]+)?|\.[0-9]+)\s*[A-Za-z]*")


def as_bytes(value: Any) -> int:
    """Read a number of bytes: `50GB`, `1.5GiB`, or a number.

    Raises:
        ValueError: it is none.
    """
    wrong = ValueError(f"expected a size such as 50GB, 1.5GiB or 1000000, got {value!r}")
    # Pydantic itself reads the beginning of a text alone: the 10 of `10%`.
    if isinstance(value, bool) or (isinstance(value, str) and not _SIZE.fullmatch(value.strip())):
        raise wrong
    try:
        return int(TypeAdapter(ByteSize).validate_python(value))
    except ValidationError:
        raise wrong from None


Bytes = Annotated[int, BeforeValidator(as_bytes)]


class Section(BaseModel):
    """A frozen part of a job."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        validate_default=True,
        allow_inf_nan=False,
    )


def changed_fields(section: BaseModel) -> list[str]:
    """Return the names of fields that differ from their defaults, also where those were given."""
    fields = type(section).model_fields.items()
    return [
        name
        for name, field in fields
        if getattr(section, name) != field.get_default(call_default_factory=True)
    ]


def section_of(hint: Any) -> type[BaseModel] | None:
    """Return the model that an annotation holds: `X`, `X | None` or `tuple[X, ...]`."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return hint
    for part in typing.get_args(hint):
        found = section_of(part)
        if found is not None:
            return found
    return None


# Mistakes in words

# What pydantic calls things, in the words of a YAML file.
_WORDS = (
    (r"^Input should be (?=greater|less|a multiple)", "expected a number "),
    (r"^Input should be callable", "expected a function"),
    (r"^Input should be ", "expected "),
    (r"^(Tuple|List) should have (.*) item(s?) after validation.*", r"expected \2 element\3"),
    (r"^String should have ", "expected a text with "),
    (r"^Dictionary should have (.*) item(s?) after validation.*", r"expected \1 key\2"),
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


def explain(
    error: ValidationError,
    root_model: type[BaseModel],
    extra: Iterable[str] = (),
    between: str = "\n",
) -> str:
    """Return one line for each mistake: `tasks[0].txt: unknown key …, did you mean 'text'?`.

    Args:
        error: What pydantic found.
        root_model: The model that refused the values.
        extra: Keys of the top level that are known besides the model's.
        between: What separates the mistakes.
    """
    mistakes: list[dict[str, Any]] = [dict(each) for each in error.errors(include_url=False)]
    places = {tuple(mistake["loc"]) for mistake in mistakes}
    lines: dict[str, None] = {}
    for mistake in mistakes:
        place = tuple(mistake["loc"])
        # Pydantic counts a list with wrong elements as too short; report the elements alone.
        inner = (len(other) > len(place) and other[: len(place)] == place for other in places)
        if mistake["type"] == "too_short" and any(inner):
            continue
        _leave_out_forms(mistake, places)
        lines[_line(mistake, root_model, tuple(extra))] = None
    return between.join(lines)


def expectation(mistake: Mapping[str, Any], *, got: bool = True) -> str:
    """Return what pydantic expected of a value, in the words of a YAML file.

    Args:
        mistake: One of the errors of a `ValidationError`.
        got: Whether to add the value.
    """
    if mistake["type"] == "value_error":  # our own, which has both
        return mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "literal_error":
        options = re.findall(r"'([^']*)'", mistake["ctx"]["expected"])
        text = f"expected {_one_of(mistake['input'], options)}"
    else:
        text = mistake["msg"]
        for pattern, words in _WORDS:
            text = re.sub(pattern, words, text)
        text = text if text.startswith("expected ") else f"expected otherwise: {text}"
    return f"{text}, got {shown(mistake['input'])}" if got else text


def path_of(place: Sequence[int | str]) -> str:
    """Return a place in a job as `--set` writes it, with a leading dot: `.tasks[0].text`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)


def shown(value: Any) -> str:
    """Return a value as a YAML file has it, cut to 80 characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _leave_out_forms(mistake: dict[str, Any], places: set[tuple[int | str, ...]]) -> None:
    """Take out of a place what only pydantic knows of: a key, the forms of a value."""
    *above, last = mistake["loc"] or ("",)
    if last == "[key]":
        mistake |= {"loc": above[:-1], "type": "form", "msg": "expected texts as keys"}
    elif last in _FORMS and {(*above, form) for form in _FORMS} <= places:
        words = "expected a number, or true or false"
        mistake |= {"loc": above, "type": "form", "msg": words}


def _line(mistake: dict[str, Any], root: type[BaseModel], extra: Sequence[str]) -> str:
    place = tuple(mistake["loc"])
    prefix = f"{path_of(place).removeprefix('.')}: " if place else ""
    parent = _section(root, place[:-1])
    if mistake["type"] == "extra_forbidden":
        known = sorted(parent.model_fields) if parent else []
        known += extra if len(place) == 1 else ()
        return f"{prefix}unknown key, expected {_one_of(str(place[-1]), known)}"
    if mistake["type"] == "missing":
        field = parent.model_fields.get(str(place[-1])) if parent else None
        meaning = f" ({field.description.rstrip('.')})" if field and field.description else ""
        return f"{prefix}expected a value{meaning}, got none"
    return prefix + expectation(mistake)


def _section(root: type[BaseModel], place: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the model that holds the values at a place."""
    model: type[BaseModel] | None = root
    for key in place:
        if isinstance(key, str):
            known = model.model_fields.get(key) if model else None
            model = section_of(known.annotation) if known else None
    return model


def _one_of(got: Any, known: Sequence[str]) -> str:
    listed = f"one of {', '.join(known)}" if len(known) != 1 else repr(known[0])
    return listed + (did_you_mean(got, known, count=1) if isinstance(got, str) else "")
