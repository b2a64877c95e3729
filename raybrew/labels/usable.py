"""Whether a job's label store can be used at all, before anything is computed for it."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from raybrew.errors import ConfigError
from raybrew.labels.location import LocalLocation
from raybrew.labels.remote import RemoteLocation, location_of
from raybrew.labels.spec import StoreSpec

if TYPE_CHECKING:
    from raybrew.config import LabelConfig

__all__ = ["check_store"]


def check_store(labels: "LabelConfig") -> None:
    """Refuse a store that is no folder, and can't become one; likewise the cache of a remote one.

    Raises:
        ConfigError: names the field.
    """
    location = location_of(StoreSpec.of(labels))
    if isinstance(location, LocalLocation):
        _check_folder("labels.store", location.base)
    elif isinstance(location, RemoteLocation):
        _check_folder("labels.cache", location.cache.base)


def _check_folder(what: str, folder: Path) -> None:
    try:
        # What is there may be one to read only: it may have every label that is needed.
        if folder.is_dir():
            return
        if folder.exists() or "\0" in str(folder):
            raise ConfigError(f"{what}: expected a folder, got {str(folder)!r}, which is none")
        there = next(parent for parent in folder.parents if parent.exists())
        with tempfile.TemporaryDirectory(prefix=".raybrew-", dir=there):
            pass
    except OSError as error:
        raise ConfigError(
            f"{what}: expected a folder, or where one can be made, got {str(folder)!r}: {error}"
        ) from error
