"""What the sections of a job are made of.

Frozen models, types of values, paths as users write them.
"""

import os
import re
import sys
import textwrap
import typing
from collections.abc import Iterable, Sequence
from inspect import Parameter, Signature
from pathlib import Path
from tempfile import TemporaryDirectory
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar, Union

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic.fields import FieldInfo

from raybrew.config.mistakes import explain_arguments, shown
from raybrew.errors import ConfigError, DataError

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


class _ShownAs(NamedTuple):
    """How documentation writes a type that pydantic checks by a function."""

    text: str


def _as_source(value: Any) -> Any:
    if isinstance(value, str) or _is_data_set(value):
        return value
    if isinstance(value, Path):
        return str(value)
    got = type(value).__name__
    raise ValueError(f"expected a path, a hub id or a datasets.Dataset, got {got}")


def _is_data_set(value: Any) -> bool:
    # Whoever has one has imported the package, which takes a second and a job file doesn't need.
    library = sys.modules.get("datasets")
    return library is not None and isinstance(value, library.Dataset)


def _source_to_plain(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return f"datasets.Dataset:{value._fingerprint}"


DataSource = Annotated[
    Any,
    BeforeValidator(_as_source),
    PlainSerializer(_source_to_plain),
    _ShownAs("str | Path | datasets.Dataset"),
    WithJsonSchema({"type": "string"}),
]
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


ImportPath = Annotated[
    Any,
    BeforeValidator(_as_import_path),
    PlainSerializer(import_path_of),
    _ShownAs("Callable | str | None"),
    WithJsonSchema({"type": ["string", "null"]}),
]
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


Bytes = Annotated[
    int, BeforeValidator(as_bytes), WithJsonSchema({"type": ["integer", "number", "string"]})
]


_ARGUMENTS = "\n\nArguments:\n"


def _summarize(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Describe a section in a JSON schema without its fields, which have texts of their own."""
    schema["description"] = (model.__doc__ or "").partition(_ARGUMENTS)[0]


class Section(BaseModel):
    """A frozen part of a job."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        validate_default=True,
        allow_inf_nan=False,
        json_schema_extra=_summarize,
    )

    if not TYPE_CHECKING:  # pyright knows the fields as arguments only without these

        def __init__(self, /, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise ConfigError(explain_arguments(error, type(self))) from None

        # Inside another section pydantic fills in a section without __init__, so that its errors
        # keep their places; it asks for this mark of an __init__ that takes what its own does.
        __init__.__pydantic_base_init__ = True

        def __setattr__(self, name: str, value: Any) -> None:
            try:
                super().__setattr__(name, value)
            except ValidationError:
                kind = type(self).__name__
                raise ConfigError(
                    f"{kind}.{name}: a {kind} can't be changed; make another: "
                    f"{kind}(**{{**dict(old), {name!r}: {shown(value)}}})"
                ) from None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Put types, defaults, ranges and descriptions where `help` and notebooks find them."""
        super().__pydantic_init_subclass__(**kwargs)
        fields = cls.model_fields.items()
        if fields and cls.__doc__ and _ARGUMENTS not in cls.__doc__:
            cls.__signature__ = Signature([_parameter(*each) for each in fields])
            cls.__doc__ += _ARGUMENTS + "\n".join(_described(*each) for each in fields)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Yield what differs from the defaults: what the user wrote."""
        return [(name, getattr(self, name)) for name in changed_fields(self)]


class _Bare(str):
    """A text that shows without quotes, as types and defaults of a signature do."""

    __slots__ = ()
    __repr__ = str.__str__


def _parameter(name: str, field: FieldInfo) -> Parameter:
    default = Parameter.empty if field.is_required() else _Bare(_default_of(field))
    words = _Bare(_type_words(field.annotation, field.metadata))
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=words)


def _described(name: str, field: FieldInfo) -> str:
    default = "" if field.is_required() else f" = {_default_of(field)}"
    limits = "".join(f", {sign} {getattr(each, key):,}" for key, sign in _LIMITS.items()
        for each in field.metadata if getattr(each, key, None) is not None)  # fmt: skip
    text = textwrap.fill(
        field.description or "", 92, initial_indent=" " * 8, subsequent_indent=" " * 8
    )
    return f"    {name}: {_type_words(field.annotation, field.metadata)}{default}{limits}\n{text}"


_LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥"}


def _default_of(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    return f"{type(default).__name__}()" if isinstance(default, Section) else repr(default)


def _type_words(hint: Any, metadata: Sequence[Any] = ()) -> str:
    """Return a type as documentation has it: `float | None`, `Sequence[Task]`."""
    shown_as = [each.text for each in metadata if isinstance(each, _ShownAs)]
    if shown_as:
        return shown_as[0]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _type_words(inner[0], inner[1:])
    if origin in (Union, UnionType):
        return " | ".join(map(_type_words, inner))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, inner))}]"
    if origin is tuple and inner[1:] == (...,):
        return f"Sequence[{_type_words(inner[0])}]"
    if origin is None or not inner:
        return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))
    return f"{origin.__name__}[{', '.join(map(_type_words, inner))}]"


def changed_fields(section: BaseModel) -> list[str]:
    """Return the names of fields that differ from their defaults, also where those were given."""
    fields = type(section).model_fields.items()
    return [
        name
        for name, field in fields
        if getattr(section, name) != field.get_default(call_default_factory=True)
    ]
