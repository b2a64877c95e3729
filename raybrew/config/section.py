"""What the sections of a job are made of: frozen models and types of values."""

import re
from collections.abc import Sequence
from pathlib import Path
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


def _as_source(value: Any) -> Any:
    if isinstance(value, (str, Dataset)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise ValueError(
        "expected a path, a hub id or a datasets.Dataset" + f", got {type(value).__name__}"
    )


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
