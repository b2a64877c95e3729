"""What can go from a store by hand: old labels, a teacher's, damaged files, what a crash left.

Deleting never harms who reads: a shard that is mapped serves until it is let go, and a label that
is missing is computed again.
"""

import time
from collections.abc import Sequence, Set
from dataclasses import dataclass

from raybrew.errors import ConfigError
from raybrew.labels.layout import Kind, kind_of, teachers_of
from raybrew.labels.location import Location, StoredFile
from raybrew.labels.manifest import read_manifest
from raybrew.labels.room import evictable

__all__ = ["Pruned", "find_teachers", "plan_pruning"]

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
