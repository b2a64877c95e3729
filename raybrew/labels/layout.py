"""Which files of a folder are a store's: those with a name and a depth that it gives itself.

    <teacher>/manifest.json                          manifest
    <teacher>/<signal>/shard-<random>.arrow          shard
                       shard-<random>.arrow.damaged  damaged
                       merge.lock                    lock
              …/<shard or manifest>.<random>.tmp     temporary

Whatever else lies there is somebody's, and never touched.
"""

import re
from typing import Literal

from raybrew.errors import ConfigError
from raybrew.labels.location import Location
from raybrew.labels.manifest import read_manifest

__all__ = ["Kind", "check_is_store", "kind_of", "kind_of_copy", "teachers_of"]

Kind = Literal["manifest", "shard", "damaged", "lock", "temporary"]

_RANDOM = "[0-9a-f]{32}"
_KINDS: dict[Kind, str] = {
    "manifest": r"[^/]+/manifest\.json",
    "shard": rf"[^/]+/[^/]+/shard-{_RANDOM}\.arrow",
    "damaged": rf"[^/]+/[^/]+/shard-{_RANDOM}\.arrow\.damaged",
    "lock": r"[^/]+/[^/]+/merge\.lock",
    "temporary": rf"[^/]+/(manifest\.json|[^/]+/shard-{_RANDOM}\.arrow)\.{_RANDOM}\.tmp",
}
_SHOWN = 3


def kind_of(path: str) -> Kind | None:
    """Return what a file is by its path in the store; None for what isn't the store's."""
    return next((kind for kind, name in _KINDS.items() if re.fullmatch(name, path)), None)


def kind_of_copy(path: str) -> Kind | None:
    """Return what a file of the cache is, which has a folder for each remote store."""
    store, _, rest = path.partition("/")
    return kind_of(rest) if re.fullmatch(_RANDOM, store) else None


def teachers_of(location: Location) -> set[str]:
    """Return the fingerprints of the teachers that a store has files of."""
    found = set()
    noted = set()
    for file in location.files():
        teacher, kind = file.path.partition("/")[0], kind_of(file.path)
        if kind in ("shard", "damaged"):
            found.add(teacher)
        elif kind == "manifest":
            noted.add(teacher)
    # Any project may have a manifest.json.
    return found | {teacher for teacher in noted - found if read_manifest(location, teacher)}


def check_is_store(location: Location) -> None:
    """Refuse a folder of other things.

    Raises:
        ConfigError: says what it holds; an empty one is an empty store.
    """
    paths = [file.path for file in location.files()]
    kinds = {kind_of(path) for path in paths}
    if not paths or kinds - {None, "manifest"}:
        return
    if not teachers_of(location):
        shown = ", ".join(paths[:_SHOWN]) + (", …" if len(paths) > _SHOWN else "")
        raise ConfigError(
            f"label store: expected a folder that raybrew keeps labels in, "
            f"<teacher>/<signal>/shard-*.arrow, got {location.root}, which holds {shown}"
        )
