"""What a store holds.

Fingerprints and names of teachers, the files that belong to the store, StoreStats.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import xxhash

from raybrew.config.paths import held_by
from raybrew.data.files import explain
from raybrew.errors import ConfigError, LabelError
from raybrew.labels.location import FULL, Location, StoredFile, checked_name, is_set_aside, is_shard
from raybrew.labels.shards import UnusableShardError, open_shard, read_header

# Which teacher gave an answer: a hash of all that its answers depend on besides the input.
#
# Location doesn't matter: the same weights in another folder have the same fingerprint, so that
# labels outlive moves, runs and machines.

# What a config says about names and history changes no logit.
_IRRELEVANT = {"_name_or_path", "transformers_version", "id2label", "label2id", "dtype"}
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_CHUNK_BYTES = 1 << 24
_HALF_PRECISION_LOADING = "2"
"""How weights become half precision; counted up when answers change.

1: the whole module was cast after loading. 2: transformers' own loading, which keeps some of it in
float32.
"""


def model_fingerprint(
    folder: str | Path, *, dtype: str, adaptor: str, own_code: bool = False
) -> str:
    """Hash the weights, the configuration, the precision and the adaptor of a teacher.

    Args:
        folder: a local folder as transformers writes it (a hub id resolved to its snapshot).
        dtype: precision that the teacher computes in.
        adaptor: name of what turns the model's outputs into logits.
        own_code: whether the folder's code makes the model, and so belongs to it.

    Returns:
        32 hexadecimal digits.

    Raises:
        ConfigError: the folder holds no weights.

    """
    folder = Path(folder)
    weights = sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)})
    if not weights:
        raise ConfigError(
            f"teacher {folder}: expected weights ({' or '.join(_WEIGHTS)}), got {held_by(folder)}"
        )
    digest = xxhash.xxh3_128()
    code = sorted(folder.glob("*.py")) if own_code else []
    for path in (*weights, *code):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in _IRRELEVANT}
    precision = dtype if dtype == "float32" else f"{dtype}, loading {_HALF_PRECISION_LOADING}"
    digest.update(json.dumps([kept, precision, adaptor], sort_keys=True).encode())
    return digest.hexdigest()


# Whose labels a folder of the store holds, for people: `<fingerprint>/manifest.json`.
#
#     {"format": "raybrew-teacher-1", "fingerprint": "…", "teacher": "a", "model": "runs/teacher-a"}
#
# Nothing depends on it: what a label is follows from the fingerprint alone.

FORMAT = "raybrew-teacher-1"
MANIFEST = "manifest.json"
_MAX_BYTES = 1 << 16


def write_manifest(location: Location, fingerprint: str, *, teacher: str, model: str) -> None:
    """Note a teacher's names beside its labels.

    A store that can't be written to is found by it before any teacher is loaded.

    Args:
        location: the store.
        fingerprint: of the teacher.
        teacher: the job's name of it.
        model: its folder or hub id.

    A file of another program with this name is left as it is.

    Raises:
        LabelError: it can't be written; a full disk is passed over, as that is for the labels to
            find.
    """
    path = f"{checked_name(fingerprint)}/{MANIFEST}"
    content = json.dumps(
        {"format": FORMAT, "fingerprint": fingerprint, "teacher": teacher, "model": model}, indent=1
    )

    def write(temporary: Path) -> None:
        temporary.write_text(content + "\n", encoding="utf-8")

    try:
        if _content(location, fingerprint) and not read_manifest(location, fingerprint):
            return
        location.publish(path, write)
    except OSError as error:
        if error.errno in FULL:
            return
        raise LabelError(
            f"label store {location.root}: can't be written to, and labels are missing: "
            f"{explain(error)}"
        ) from error


def read_manifest(location: Location, fingerprint: str) -> dict[str, str]:
    """Return a teacher's names; nothing where they were not noted.

    Raises:
        OSError: the system refuses to have them read.
    """
    try:
        values = json.loads(_content(location, fingerprint))
    except (ValueError, RecursionError):  # brackets in brackets, thousands deep
        return {}
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        return {}
    return {str(key): str(value) for key, value in values.items()}


def _content(location: Location, fingerprint: str) -> bytes:
    try:
        with location.open(f"{fingerprint}/{MANIFEST}") as source:
            return source.read(_MAX_BYTES)
    except FileNotFoundError:
        return b""


# Which files of a folder are a store's: those with a name and a depth that it gives itself.
#
#     <teacher>/manifest.json                          manifest
#     <teacher>/<signal>/shard-<random>.arrow          shard
#                        shard-<random>.arrow.damaged  damaged
#                        merge.lock                    lock
#               …/<shard or manifest>.<random>.tmp     temporary
#
# Whatever else lies there is somebody's, and never touched.

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


# What a store holds, and whether it is whole.

_DEPTH = 2  # <teacher>/<signal>/<shard>


@dataclass(frozen=True)
class StoreStats:
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


def survey(location: Location) -> list[StoreStats]:
    """Return what a store holds, by teacher and signal; only the heads of files are read."""
    holdings = []
    for folder, files in _folders(location.files()):
        teacher, _, signal = folder.partition("/")
        shards = [file for file in files if is_shard(file.name)]
        counts = [_count(location, file) for file in shards]
        aside = sum(is_set_aside(file.name) for file in files)
        holdings.append(
            StoreStats(
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
