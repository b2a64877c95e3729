"""Freezing: the parameters of a student that stay as they are."""

import difflib
import re
from collections.abc import Iterable

from torch import nn

from raybrew.errors import ConfigError

__all__ = ["freeze"]


def freeze(model: nn.Module, patterns: Iterable[str], what: str = "freeze") -> int:
    """Freeze the parameters whose names contain one of the patterns.

    Numbers match whole: `layer.1` leaves `layer.10` alone. A mistake changes nothing.

    Returns:
        How many parameter tensors the patterns froze.

    Raises:
        ConfigError: A pattern matches no parameter, or nothing would be left to train.
    """
    # A shared parameter goes by each of its names.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    frozen: set[str] = set()
    for pattern in patterns:
        cut = r"(?<!\d)" if pattern[:1].isdigit() else ""
        whole = re.compile(cut + re.escape(pattern) + (r"(?!\d)" if pattern[-1:].isdigit() else ""))
        matched = {name for name in parameters if whole.search(name)}
        if not matched or not pattern:
            raise ConfigError(
                f"{what}: expected a part of a parameter's name, got {pattern!r}, which matches "
                f"none{_near_names(pattern, parameters)}"
            )
        frozen |= matched
    if frozen and all(name in frozen or not p.requires_grad for name, p in parameters.items()):
        raise ConfigError(f"{what}: expected parameters left to train, got all of them frozen")
    for name in frozen:
        parameters[name].requires_grad_(False)
    return len(frozen)


def _near_names(pattern: str, names: Iterable[str]) -> str:
    parts = {part for name in names for part in name.split(".")}
    prefixes = {".".join(name.split(".")[:end]) for name in names for end in range(2, 6)}
    near = difflib.get_close_matches(pattern, sorted(parts | prefixes), n=3)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
