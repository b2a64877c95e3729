"""What a store holds, and whether it is whole."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from raybrew.labels.location import Location, StoredFile, is_set_aside, is_shard
from raybrew.labels.manifest import read_manifest
from raybrew.labels.shards import UnusableShardError, open_shard, read_header

__all__ = ["Holding", "survey", "verify"]

_DEPTH = 2  # <teacher>/<signal>/<shard>


@dataclass(frozen=True)
class Holding:
    """The labels of one teacher and one signal.

    Args:
        teacher: its fingerprint.
        model: its folder or hub id; empty where that was not noted.
        signal: name of the signal.
        labels: how many; one in two shards counts twice.
        shards: files that hold them.
        nbytes: of these files.
        used_s: when one of them was last used, seconds since 1970.
        damaged: files that were set aside, or whose head isn't that of a shard.
    """

    teacher: str
    model: str
    signal: str
    labels: int
    shards: int
    nbytes: int
    used_s: float
    damaged: int


def survey(location: Location) -> list[Holding]:
    """Return what a store holds, by teacher and signal; only the heads of files are read."""
    holdings = []
    for folder, files in _folders(location.files()):
        teacher, _, signal = folder.partition("/")
        shards = [file for file in files if is_shard(file.name)]
        counts = [_count(location, file) for file in shards]
        aside = sum(is_set_aside(file.name) for file in files)
        holdings.append(
            Holding(
                teacher=teacher,
                model=read_manifest(location, teacher).get("model", ""),
                signal=signal,
                labels=sum(count for count in counts if count is not None),
                shards=len(shards),
                nbytes=sum(file.nbytes for file in shards),
                used_s=max((file.used_s for file in shards), default=0.0),
                damaged=aside + sum(count is None for count in counts),
            )
        )
    return holdings


def verify(location: Location, on_checked: Callable[[StoredFile], None]) -> list[str]:
    """Check every shard of a store against its checksum.

    Args:
        location: the store.
        on_checked: called with each file that was looked at.

    Returns:
        What is wrong, a line a file; what was set aside before is among it.
    """
    wrong = []
    for folder, files in _folders(location.files()):
        teacher, _, signal = folder.partition("/")
        for file in files:
            if is_shard(file.name):
                wrong += _check(location, file, teacher, signal)
            elif is_set_aside(file.name):
                wrong.append(f"{file.path}: set aside as damaged before")
            on_checked(file)
    return wrong


def _check(location: Location, file: StoredFile, teacher: str, signal: str) -> list[str]:
    location.forget(file.path)  # the store is asked about, not this machine's copy
    try:
        open_shard(location.fetch(file.path), teacher=teacher, signal=signal).verify()
    except FileNotFoundError:
        return []  # deleted or merged since it was listed
    except UnusableShardError as error:
        return [f"{file.path}: {error}"]
    return []


def _folders(files: Sequence[StoredFile]) -> Iterator[tuple[str, list[StoredFile]]]:
    inside = [file for file in files if file.path.count("/") == _DEPTH]
    for folder, group in groupby(
        sorted(inside, key=lambda file: (file.folder, file.name)), key=lambda file: file.folder
    ):
        mine = [f for f in group if is_shard(f.name) or is_set_aside(f.name)]
        if mine:
            yield folder, mine


def _count(location: Location, file: StoredFile) -> int | None:
    try:
        with location.open(file.path) as source:
            return read_header(file.path, source).labels
    except (FileNotFoundError, UnusableShardError):
        return None
