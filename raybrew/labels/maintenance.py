"""Keeps a store small: eviction, pruning and compaction.

Eviction makes space for new labels when a store has reached its greatest size: files that were set
aside as damaged go first, then the shards that were not read for longest. Whatever was read or
written since the present run began stays.

Pruning deletes by hand: old labels, those of a teacher, damaged files, remains of a crash. Deleting
never harms readers: a mapped shard can be read until it is closed, and missing labels are computed
again.

Compaction merges small shards into larger ones, while other processes read and write:

    small shards ──► one shard, visible ──► small shards deleted

At any moment each label is in one visible shard at least; a process that has a deleted one mapped
reads it until its next `refresh`.
"""

import logging
import time
from collections.abc import Sequence, Set

import numpy as np

from raybrew.data.encoding import distinct_keys
from raybrew.data.payload import Payload
from raybrew.errors import ConfigError, StoreFullError
from raybrew.labels.contents import fingerprints_in, read_manifest
from raybrew.labels.location import Location, StoredFile, label_errors
from raybrew.labels.shards import Shard, UnusableShardError, write_shard

logger = logging.getLogger(__name__)

CLOCKS_S = 60.0
"""How far the clocks of the machines that share a store may differ."""
ABANDONED_S = 3600.0
"""A temporary file that was not written to for so long was left by a process that died."""
SMALL_BYTES = 8 << 20
TOO_MANY = 16
"""So many small shards are merged into one."""
_COMPACTED_BYTES = 128 << 20


def evictable(files: Sequence[StoredFile], excess: int, since: float) -> list[StoredFile] | None:
    """Return which files have to go.

    Args:
        files: of the store.
        excess: bytes to free.
        since: files used since then stay, seconds since 1970.

    Returns:
        As few as possible, in this order; None if all that may go is not enough.
    """
    damaged = [file for file in files if file.type == "damaged"]
    idle = [file for file in files if file.type == "shard" and file.used_s < since - CLOCKS_S]
    going: list[StoredFile] = []
    for file in damaged + sorted(idle, key=lambda file: (file.used_s, file.path)):
        if excess <= 0:
            break
        going.append(file)
        excess -= file.nbytes
    return None if excess > 0 else going


def evict(location: Location, nbytes: int, max_bytes: int | None, since: float) -> None:
    """Delete the files that have to go so that so many more bytes fit.

    Args:
        location: the store, or the cache of remote ones.
        nbytes: of what will be written.
        max_bytes: greatest size of the store's own files; None for any. Other programs' files are
            neither counted nor deleted.
        since: files used since then stay, seconds since 1970.

    Raises:
        StoreFullError: they don't fit; nothing was deleted.
    """
    if max_bytes is None:
        return
    files = [file for file in location.files() if file.type is not None]
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
            "label store %s: evicted the %d least recently used files to make space for new labels",
            location.root,
            len(going),
        )


def find_teachers(location: Location, given: Sequence[str]) -> set[str]:
    """Return the fingerprints that begin as given.

    Raises:
        ConfigError: one is the beginning of no teacher's fingerprint, or of several.
    """
    known = sorted(fingerprints_in(location))
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
) -> dict[StoredFile, str]:
    """Return the files to delete, each with the reason: temporary, damaged, teacher or size.

    Args:
        location: the store; files that aren't its own by name and content stay.
        max_bytes: how large it may be afterwards; the least recently used labels go first.
        teachers: fingerprints of teachers whose labels go.
        damaged: whether files that were set aside go.
    """
    now = time.time()
    going: dict[StoredFile, str] = {}
    own = [file for file in location.files() if file.type is not None]
    for file in own:
        if file.type == "temporary" and now - file.used_s > ABANDONED_S:
            going[file] = "temporary"
        elif file.teacher in teachers and (
            file.type in ("shard", "damaged")
            # Other programs write files of the manifest's name as well.
            or (file.type == "manifest" and read_manifest(location, file.teacher))
        ):
            going[file] = "teacher"
        elif damaged and file.type == "damaged":
            going[file] = "damaged"
    if max_bytes is not None:
        left = [file for file in own if file not in going]
        shards = [file for file in left if file.type == "shard"]
        # Where even all of them are not enough, the remaining files hold no labels.
        excess = min(sum(f.nbytes for f in left) - max_bytes, sum(f.nbytes for f in shards))
        going |= dict.fromkeys(evictable(shards, excess, float("inf")) or [], "size")
    return going


def count_compactable(location: Location, folder: str) -> int:
    """Return how many shards of a teacher and a signal would be merged, if all are whole."""
    return sum(len(group) for group in _groups(_small(location, folder)) if len(group) > 1)


def compact(location: Location, folder: str, *, at_least: int = TOO_MANY) -> int:
    """Merge the small shards of a teacher and a signal, unless another process is doing it.

    Args:
        location: the store.
        folder: `<teacher fingerprint>/<signal>`.
        at_least: fewer are left as they are.

    Returns:
        How many shards were merged.

    Raises:
        StoreFullError: there is no space for the merged shard; nothing was deleted.
        LabelError: the system refuses; each label is still in a shard.
    """
    merged = 0
    with label_errors(location.root), location.exclusive(f"{folder}/merge") as is_mine:
        small = _small(location, folder)
        if not is_mine or len(small) < at_least:
            return 0
        for group in _groups(small):
            read = [(file, _read(location, file)) for file in group]
            whole = [(file, shard) for file, shard in read if shard is not None]
            if len(whole) < 2:
                continue
            keys, payload = _joined([shard for _, shard in whole])
            path = write_shard(location, folder, keys, payload)
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
        if size + file.nbytes > _COMPACTED_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.nbytes
    return groups


def _read(location: Location, file: StoredFile) -> Shard | None:
    # Damage is left to the store that reads the shard next, which warns of it.
    try:
        shard = Shard(location.fetch(file.path), file.folder)
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
