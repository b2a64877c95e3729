"""The greatest size of a store, and what has to go when it is reached.

First what was set aside as damaged, then the shards that nobody has read for longest. What was
read or written since the present run began stays: it is needed, or may be.
"""

import logging
from collections.abc import Callable, Sequence

from raybrew.errors import StoreFullError
from raybrew.labels.layout import Kind, kind_of
from raybrew.labels.location import Location, StoredFile, is_set_aside, is_shard

__all__ = ["evictable", "make_room"]

logger = logging.getLogger(__name__)

CLOCKS_S = 60.0
"""What the clocks of the machines that share a store may differ by."""


def evictable(files: Sequence[StoredFile], excess: int, since: float) -> list[StoredFile] | None:
    """Return which files have to go.

    Args:
        files: all that are the store's own.
        excess: bytes to get rid of.
        since: what was used since is kept, seconds since 1970.

    Returns:
        As few as it takes, in this order; None if all that may go is not enough.
    """
    damaged = [file for file in files if is_set_aside(file.name)]
    idle = [file for file in files if is_shard(file.name) and file.used_s < since - CLOCKS_S]
    going: list[StoredFile] = []
    for file in damaged + sorted(idle, key=lambda file: (file.used_s, file.path)):
        if excess <= 0:
            break
        going.append(file)
        excess -= file.nbytes
    return None if excess > 0 else going


def make_room(
    location: Location,
    nbytes: int,
    max_bytes: int | None,
    since: float,
    kind_of: Callable[[str], Kind | None] = kind_of,
) -> None:
    """Delete what has to go so that so many more bytes fit.

    Args:
        location: the store, or the cache of remote ones.
        nbytes: of what will be written.
        max_bytes: what the store's own files may take; None for any size.
        since: what was used since is kept, seconds since 1970.
        kind_of: what a file is by its path; what isn't the store's is neither counted nor deleted.

    Raises:
        StoreFullError: they don't fit; nothing was deleted.
    """
    if max_bytes is None:
        return
    files = [file for file in location.files() if kind_of(file.path) is not None]
    total = sum(file.nbytes for file in files)
    going = evictable(files, total + nbytes - max_bytes, since)
    if going is None:
        raise StoreFullError(
            f"label store {location.root}: {nbytes:,} more bytes don't fit into its greatest size, "
            f"{max_bytes:,} bytes: it has {total:,}, most of them in use since this run began; "
            "raise labels.max_bytes, or keep labels in a shorter labels.dtype"
        )
    for file in going:
        location.remove(file.path)
    if going:
        logger.info(
            "label store %s: %d files that were not read for longest made room for new labels",
            location.root,
            len(going),
        )
