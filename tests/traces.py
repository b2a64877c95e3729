"""What a run must not leave behind when it is over, however it ended."""

from pathlib import Path

HALF_DONE = (".tmp", ".partial", ".claim", ".wanted")


def temporaries(*folders: Path) -> list[str]:
    """Return what was being written below the folders, and what was claimed in stores."""
    paths = [path for folder in folders for path in folder.rglob("*")]
    return [
        str(path)
        for path in paths
        if path.name.startswith(".tmp-") or path.suffix in HALF_DONE or ".tmp." in path.name
    ]
