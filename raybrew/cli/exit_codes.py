"""A user's mistake is one message and exit code 2; Ctrl-C is 130, SIGTERM 143."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from raybrew.errors import RaybrewError, Terminated

USAGE_ERROR, INTERRUPTED, TERMINATED = 2, 130, 143


@contextmanager
def told(hint: str = "") -> Iterator[None]:
    """Turn errors into messages.

    Used inside of a command: typer has its own, silent way with an interrupt.

    Args:
        hint: what an interrupted user is told to do next.
    """
    try:
        yield
    except RaybrewError as error:
        print(f"raybrew: {error}", file=sys.stderr)
        raise typer.Exit(USAGE_ERROR) from error
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        word = "terminated" if terminated else "interrupted"
        print(f"raybrew: {word}{hint}", file=sys.stderr)
        raise typer.Exit(TERMINATED if terminated else INTERRUPTED) from error
