"""A job as nested values that can be changed and checked again, live objects kept as they are."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

__all__ = ["values_of"]


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
