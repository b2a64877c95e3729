"""Functions of the user's, by import path, so that a file can name them and workers find them."""

import importlib
from collections.abc import Callable
from typing import Any

from raybrew.errors import ConfigError

__all__ = ["import_callable"]


def import_callable(target: Callable[..., Any] | str, what: str) -> Callable[..., Any]:
    """Resolve an import path, "package.module:name"; a callable is itself.

    Args:
        target: either.
        what: what it is, for the message.

    Raises:
        ConfigError: nothing callable is there.
    """
    if not isinstance(target, str):
        return target
    module_name, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{what} {target!r} can't be imported: {error}. Give it as "
            '"package.module:name", from a module that every worker can import.'
        ) from error
    if not callable(found):
        raise ConfigError(f"{what} {target!r} is a {type(found).__name__}, which can't be called.")
    return found
