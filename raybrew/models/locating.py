"""Where a model's files are: in a folder of the user's, or on the hub."""

import difflib
import re
from os.path import isdir, isfile  # of what may not be looked at they say no
from pathlib import Path

from raybrew.errors import ConfigError
from raybrew.paths import held_by, names_in, user_path

__all__ = ["locate"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def locate(path: str, what: str, patterns: tuple[str, ...], noun: str) -> str:
    """Return the folder, checked to hold one of the files, or a hub id.

    Args:
        path: as it was given.
        what: field of the job that gave it, for messages.
        patterns: of the files; a folder without any of them is wrong.
        noun: what the files hold.

    Raises:
        ConfigError: it is neither.
    """
    folder = user_path(path, what)
    if folder.is_dir():
        if not any(isfile(file) for pattern in patterns for file in folder.glob(pattern)):
            raise ConfigError(
                f"{what}: expected a folder with {noun}, got {path!r}, which holds "
                f"{held_by(folder)}"
            )
        return str(folder)
    if folder.exists():
        raise ConfigError(
            f"{what}: expected a folder with {noun} or a hub id, got the file {path!r}"
        )
    # `runs/a` may be a hub id; where there is a folder `runs` it is a misspelt path.
    if not HUB_ID.fullmatch(path) or ("/" in path and folder.parent.is_dir()):
        raise ConfigError(
            f"{what}: expected a folder with {noun} or a hub id, got {path!r}, which doesn't "
            f"exist{_sibling(folder)}"
        )
    return path


def _sibling(folder: Path) -> str:
    if not folder.parent.is_dir():
        return ""
    names = [name for name in names_in(folder.parent) if isdir(folder.parent / name)]
    near = difflib.get_close_matches(folder.name, names, n=1)
    return f"; did you mean {str(folder.parent / near[0])!r}?" if near else ""
