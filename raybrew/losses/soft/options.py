"""Options of a named method: read off its signature, checked when a configuration is read.

function's keyword-only parameters ──► names and defaults
limits                             ──► ranges            ──► checked_options ──► plain dict
"""

import difflib
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from raybrew.errors import ConfigError
from raybrew.models.importing import import_callable

__all__ = ["Limits", "OptionValue", "checked_options", "named", "unknown_name"]

OptionValue = float | int | bool | str


@dataclass(frozen=True)
class Limits:
    """The interval an option's value must lie in; an open end is excluded."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def admits(self, value: float | int) -> bool:
        """Say whether the value is finite and inside the interval."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        start, end = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"{start}{self.low}, {self.high}{end}"


ANY_NUMBER = Limits()


def unknown_name(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """Build the error for a name that isn't known: nearest names first, then all of them.

    Args:
        what: the kind of name, e.g. "KD loss".
        name: the name that came.
        known: the names that would do.

    Returns:
        The error, for the caller to raise.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    expected = f"one of {', '.join(names)}" if names else "none at all"
    return ConfigError(f"Unknown {what} {name!r}: expected {expected}.{hint}")


def named(what: str, name: str, known: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Find a method by its name, or a user's by its import path "package.module:function".

    Args:
        what: the kind of name, e.g. "weight schedule".
        name: as configured.
        known: methods by name.

    Raises:
        ConfigError: neither leads anywhere.
    """
    if ":" in name:
        return import_callable(name, what)
    if name not in known:
        raise unknown_name(what, name, known)
    return known[name]


def checked_options(
    what: str,
    function: Callable[..., object],
    options: Mapping[str, OptionValue],
    limits: Mapping[str, Limits],
    inputs: Collection[str] = (),
) -> dict[str, OptionValue]:
    """Complete the given options with the function's defaults, and refuse what doesn't fit.

    Args:
        what: names the method in messages, e.g. "KD loss 'jsd'".
        function: the method; its keyword-only parameters are the options.
        options: name -> value, as configured.
        limits: name -> interval, for options that have one.
        inputs: keyword-only parameters that are data and not options.

    Returns:
        Every option with its value.

    Raises:
        ConfigError: an unknown or missing option, a wrong type, or a value out of range.
    """
    parameters = {
        parameter.name: parameter.default
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.name not in inputs
    }
    for name in options:
        if name not in parameters:
            raise unknown_name(f"option of {what}", name, parameters)
    values = {**parameters, **options}
    for name, value in values.items():
        if value is inspect.Parameter.empty:
            raise ConfigError(f"{what} needs the option {name!r}, which has no default; give it.")
        _check_value(f"{what}, option {name!r}", value, parameters[name], limits.get(name))
    return values


def _check_value(where: str, value: object, default: object, limits: Limits | None) -> None:
    """Refuse a value of another type than the default's, or out of its range."""
    if isinstance(default, bool | str):
        if type(value) is not type(default):
            kind = type(default).__name__
            raise ConfigError(f"{where}: expected a {kind} like {default!r}, got {value!r}.")
        return
    if limits is None and default is not inspect.Parameter.empty and not _is_number(default):
        return  # a user's option of a type of its own: theirs to check
    limits = limits or ANY_NUMBER
    if not _is_number(value) or not limits.admits(value):
        raise ConfigError(f"{where}: expected a number in {limits}, got {value!r}.")


def _is_number(value: object) -> TypeGuard[float | int]:
    return isinstance(value, int | float) and not isinstance(value, bool)
