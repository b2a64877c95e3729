"""Paths as a user writes them: of a home, of any length, with a split behind them."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from raybrew.errors import ConfigError, DataError

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
