"""Many small shards become a few larger ones, while others read and write.

    small shards ──► one shard, visible ──► small shards deleted

At any moment each label is in one visible shard at least; whoever has a deleted one mapped goes on
reading it until the next `refresh`.
"""

import logging
from collections.abc import Sequence

import numpy as np

from raybrew.data.keys import distinct_keys
from raybrew.labels.location import Location, StoredFile, label_errors
from raybrew.labels.payload import Payload
from raybrew.labels.shards import Shard, UnusableShardError, open_shard, write_shard

__all__ = ["SMALL_BYTES", "TOO_MANY", "count_small", "merge_small"]

logger = logging.getLogger(__name__)

SMALL_BYTES = 8 << 20
TOO_MANY = 16
"""So many small shards are merged into one."""
_MERGED_BYTES = 128 << 20


def count_small(location: Location, folder: str) -> int:
    """Return how many shards of a teacher and a signal would be merged, if all are whole."""
    return sum(len(group) for group in _groups(_small(location, folder)) if len(group) > 1)


def merge_small(
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
