"""Keeps a store small: eviction, pruning and compaction."""

import logging
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import numpy as np

from raybrew.data.encoding import distinct_keys
from raybrew.data.payload import Payload
from raybrew.errors import ConfigError, StoreFullError
from raybrew.labels.contents import Kind, kind_of, read_manifest, teachers_of
from raybrew.labels.location import Location, StoredFile, is_set_aside, is_shard, label_errors
from raybrew.labels.shards import Shard, UnusableShardError, open_shard, write_shard

# The greatest size of a store, and what has to go when it is reached.
#
# First what was set aside as damaged, then the shards that nobody has read for longest. What was
# read or written since the present run began stays: it is needed, or may be.

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


def evict(
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


# What can go from a store by hand: old labels, a teacher's, damaged files, what a crash left.
#
# Deleting never harms who reads: a shard that is mapped serves until it is let go, and a label that
# is missing is computed again.

ABANDONED_S = 3600.0
"""A temporary file that nobody has written to for so long was left by a process that died."""
_OF_A_TEACHER = ("shard", "damaged", "manifest")


@dataclass(frozen=True)
class Pruned:
    """A file that goes.

    Args:
        file: it.
        why: `temporary`, `damaged`, `teacher` or `size`.
    """

    file: StoredFile
    why: str


def find_teachers(location: Location, given: Sequence[str]) -> set[str]:
    """Return the fingerprints that these beginnings of fingerprints mean.

    Raises:
        ConfigError: one means no teacher of the store, or several.
    """
    known = sorted(teachers_of(location))
    found = set()
    for start in given:
        meant = [teacher for teacher in known if start and teacher.startswith(start)]
        if len(meant) != 1 and start not in known:
            raise ConfigError(
                f"--teacher: expected the beginning of one teacher's fingerprint "
                f"({', '.join(known) or 'the store has none'}), got {start!r}, which is that of "
                f"{len(meant)}"
            )
        found.add(start if start in known else meant[0])
    return found


def plan_pruning(
    location: Location,
    *,
    max_bytes: int | None = None,
    teachers: Set[str] = frozenset(),
    damaged: bool = False,
) -> list[Pruned]:
    """Return what would go.

    Args:
        location: the store; what isn't its own by name and content stays.
        max_bytes: what it may have left, least recently used labels going first.
        teachers: fingerprints of teachers whose labels go.
        damaged: whether what was set aside goes.
    """
    now = time.time()
    going: dict[str, Pruned] = {}
    own = {file: kind for file in location.files() if (kind := kind_of(file.path))}
    for file, kind in own.items():
        if kind == "temporary" and now - file.used_s > ABANDONED_S:
            going[file.path] = Pruned(file, "temporary")
        elif kind in _OF_A_TEACHER and _is_of(location, file, kind, teachers):
            going[file.path] = Pruned(file, "teacher")
        elif damaged and kind == "damaged":
            going[file.path] = Pruned(file, "damaged")
    if max_bytes is not None:
        left = [file for file in own if file.path not in going]
        excess = sum(file.nbytes for file in left) - max_bytes
        shards = [file for file in left if own[file] == "shard"]
        # Where even all of them are not enough, what remains is no label.
        oldest = evictable(shards, min(excess, sum(f.nbytes for f in shards)), float("inf")) or []
        going |= {file.path: Pruned(file, "size") for file in oldest}
    return list(going.values())


def _is_of(location: Location, file: StoredFile, kind: Kind, teachers: Set[str]) -> bool:
    teacher = file.path.partition("/")[0]
    # The name of a manifest is one that other programs give as well.
    return teacher in teachers and (kind != "manifest" or bool(read_manifest(location, teacher)))


# Many small shards become a few larger ones, while others read and write.
#
#     small shards ──► one shard, visible ──► small shards deleted
#
# At any moment each label is in one visible shard at least; whoever has a deleted one mapped goes
# on reading it until the next `refresh`.

SMALL_BYTES = 8 << 20
TOO_MANY = 16
"""So many small shards are merged into one."""
_MERGED_BYTES = 128 << 20


def count_compactable(location: Location, folder: str) -> int:
    """Return how many shards of a teacher and a signal would be merged, if all are whole."""
    return sum(len(group) for group in _groups(_small(location, folder)) if len(group) > 1)


def compact(
    location: Location, folder: str, *, teacher: str, signal: str, at_least: int = TOO_MANY
) -> int:
    """Merge the small shards of a teacher and a signal, if nobody else does right now.

    Args:
        location: the store.
        folder: folder of the teacher and the signal.
        teacher: fingerprint of the teacher.
        signal: name of the signal.
        at_least: fewer are left as they are.

    Returns:
        How many shards were merged.

    Raises:
        StoreFullError: there is no room for the merged shard; nothing was deleted.
        LabelError: the system refuses; each label is in a shard still.
    """
    merged = 0
    with label_errors(location.root), location.exclusive(f"{folder}/merge") as mine:
        small = _small(location, folder)
        if not mine or len(small) < at_least:
            return 0
        for group in _groups(small):
            read = [(file, _read(location, file, teacher, signal)) for file in group]
            whole = [(file, shard) for file, shard in read if shard is not None]
            if len(whole) < 2:
                continue
            keys, payload = _joined([shard for _, shard in whole])
            path = write_shard(location, folder, keys, payload, teacher=teacher, signal=signal)
            location.touch(path, max(file.used_s for file, _ in whole))
            for file, _ in whole:
                location.remove(file.path)
            merged += len(whole)
    logger.debug("label store %s: merged %d shards of %s", location.root, merged, folder)
    return merged


def _small(location: Location, folder: str) -> list[StoredFile]:
    return [file for file in location.shards(folder) if file.nbytes < SMALL_BYTES]


def _groups(files: Sequence[StoredFile]) -> list[list[StoredFile]]:
    groups: list[list[StoredFile]] = [[]]
    size = 0
    for file in files:
        if size + file.nbytes > _MERGED_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.nbytes
    return groups


def _read(location: Location, file: StoredFile, teacher: str, signal: str) -> Shard | None:
    # What is damaged is left to the store that reads it next, which warns of it.
    try:
        shard = open_shard(location.fetch(file.path), teacher=teacher, signal=signal)
        shard.verify()
    except (UnusableShardError, FileNotFoundError):
        return None
    return shard


def _joined(shards: Sequence[Shard]) -> tuple[np.ndarray, Payload]:
    keys = np.concatenate([shard.keys for shard in shards])
    first, _ = distinct_keys(keys)
    part = np.repeat(np.arange(len(shards)), [len(shard.keys) for shard in shards])
    row = np.concatenate([np.arange(len(shard.keys)) for shard in shards])
    payloads = [shard.payload for shard in shards]
    return keys[first], Payload.gather(payloads, part[first], row[first])
