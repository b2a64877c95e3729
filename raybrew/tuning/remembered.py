"""What a sweep is over, noted in its folder, so that it goes on with the same space alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raybrew.errors import ConfigError
from raybrew.run_folder import RunFolder
from raybrew.tuning.ranges import Range

__all__ = ["check_is_sweep", "remember"]

SPACE = "space.json"


def check_is_sweep(folder: Path) -> None:
    """Refuse to go on in the folder of a run that is no sweep.

    Raises:
        ConfigError: it began, and without a space.
    """
    if (folder / "job.yaml").exists() and not (folder / SPACE).exists():
        raise ConfigError(
            f"run.name: expected a sweep to resume in {folder}, got a run without {SPACE}, which "
            "no sweep began; name the sweep that was stopped (run.name, run.storage_path)"
        )


def remember(folder: RunFolder, ranges: Mapping[str, Range], *, resume: bool) -> None:
    """Write down what the sweep is over.

    Raises:
        ConfigError: it goes on, and began with another space, or with one that can't be read.
    """
    now = {path: each.said for path, each in ranges.items()}
    file = folder.path / SPACE
    if resume and file.exists() and _read(file) != now:
        raise ConfigError(
            f"resume: {file} says that the sweep began with another space; go on with that, or "
            "start a new sweep under another run.name"
        )
    folder.write_json(SPACE, now)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"resume: expected the space of the sweep in {file}, got a file that can't be read "
            f"({error}); start a new sweep under another run.name"
        ) from error
