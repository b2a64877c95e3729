"""Paths into a job's values, such as `teachers.a.weight`: how `--set` and sweeps change them."""

import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from raybrew.errors import ConfigError

__all__ = ["get_path", "section_of", "set_path"]


def set_path(
    values: dict[str, Any],
    path: str,
    value: Any,
    kind: type[BaseModel] | None = None,
    *,
    free: Iterable[str] = (),
) -> None:
    """Set the value at a path, in place.

    Args:
        values: Nested mappings and lists.
        path: Keys joined by dots; an element of a list by its index or its `name`.
        value: What to set.
        kind: Model of the values: its keys may be set where `values` lacks them. Without it only
            what is there can be changed.
        free: Further keys of the top level, which hold mappings of any keys.

    Raises:
        ConfigError: There is nothing at the path; names the nearest keys.
    """
    steps = path.split(".")
    place: Any = values
    hint: Any = kind
    at = 0
    while at < len(steps):
        key: Any
        if isinstance(place, list):
            key, used = _element(place, steps, at)
        else:
            key, used = _key(place, steps, at, hint, free if at == 0 else ())
        hint = None if hint is None else _inner(hint, key)
        at += used
        if at == len(steps):
            place[key] = value
            return
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


def section_of(hint: Any) -> type[BaseModel] | None:
    """Return the model that an annotation holds: `X`, `X | None` or `tuple[X, ...]`."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return hint
    for part in typing.get_args(hint):
        found = section_of(part)
        if found is not None:
            return found
    return None


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
        + f", got {steps[at]!r}{_near(steps[at], known)}"
    )


def _key(place: Any, steps: list[str], at: int, hint: Any, free: Iterable[str]) -> tuple[str, int]:
    key, path = steps[at], ".".join(steps)
    if not isinstance(place, dict):
        raise ConfigError(
            f"{path}: expected a mapping at {_at(steps, at)}, got {type(place).__name__}"
        )
    section = None if hint is None else section_of(hint)
    known = {str(each) for each in place} | set(free)
    if section is not None:
        known = set(section.model_fields) | set(free)
    if key and (key in known or (hint is not None and section is None and _is_mapping(hint))):
        return key, 1
    raise ConfigError(
        f"{path}: expected a key of {_at(steps, at)} ({', '.join(sorted(known))}), "
        f"got {key!r}{_near(key, known)}"
    )


def _at(steps: list[str], at: int) -> str:
    return ".".join(steps[:at]) or "the job"


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=3)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
