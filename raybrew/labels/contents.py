"""What a store holds: whose labels, how many, and whether they are whole.

    <store>/<fingerprint of the teacher>/manifest.json   names of the teacher, for people
                                         <signal>/…      its labels

A fingerprint is a hash of all that a teacher's answers depend on besides the input. Where the model
lies doesn't matter: the same weights in another folder have the same fingerprint, so that labels
outlive moves, runs and machines. Nothing depends on the manifest:

    {"format": "raybrew-teacher-1", "fingerprint": "…", "teacher": "a", "model": "runs/teacher-a"}
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import xxhash

from raybrew.config.section import held_by
from raybrew.data.files import explain
from raybrew.errors import ConfigError, LabelError
from raybrew.labels.location import FULL, Location, StoredFile, checked_name
from raybrew.labels.shards import Shard, UnusableShardError, read_label_count

# Names and history in a config change no logit.
_IRRELEVANT = {"_name_or_path", "transformers_version", "id2label", "label2id", "dtype"}
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_CHUNK_BYTES = 1 << 24
_HALF_PRECISION_LOADING = "2"
"""How weights become half precision; counted up when answers change.

1: the whole module was cast after loading. 2: transformers' own loading, which leaves some of it in
float32.
"""

FORMAT = "raybrew-teacher-1"
MANIFEST = "manifest.json"
_MAX_BYTES = 1 << 16
_SHOWN = 3


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
    relevant = {key: value for key, value in config.items() if key not in _IRRELEVANT}
    precision = dtype if dtype == "float32" else f"{dtype}, loading {_HALF_PRECISION_LOADING}"
    digest.update(json.dumps([relevant, precision, adaptor], sort_keys=True).encode())
    return digest.hexdigest()


def write_manifest(location: Location, fingerprint: str, *, teacher: str, model: str) -> None:
    """Write a teacher's names next to its labels.

    So a store that can't be written to is found before any teacher is loaded. A file of another
    program with this name is left as it is.

    Args:
        location: the store.
        fingerprint: of the teacher.
        teacher: the job's name of it.
        model: its folder or hub id.

    Raises:
        LabelError: it can't be written. A full disk is ignored here: writing labels reports it.
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
    """Return a teacher's names; nothing where there is no manifest.

    Raises:
        OSError: the system refuses to have it read.
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


def fingerprints_in(location: Location) -> set[str]:
    """Return the fingerprints of the teachers that a store has files of."""
    files = location.files()
    labelled = {file.teacher for file in files if file.type in ("shard", "damaged")}
    noted = {file.teacher for file in files if file.type == "manifest"}
    # Any project may have a manifest.json.
    return labelled | {teacher for teacher in noted - labelled if read_manifest(location, teacher)}


def check_is_store(location: Location) -> None:
    """Refuse a folder of other things.

    Raises:
        ConfigError: names what it holds; an empty one is an empty store.
    """
    files = location.files()
    if not files or {file.type for file in files} - {None, "manifest"}:
        return
    if not fingerprints_in(location):
        shown = ", ".join(file.path for file in files[:_SHOWN])
        shown += ", …" if len(files) > _SHOWN else ""
        raise ConfigError(
            f"label store: expected a folder that raybrew keeps labels in, "
            f"<teacher>/<signal>/shard-*.arrow, got {location.root}, which holds {shown}"
        )


@dataclass(frozen=True)
class StoreStats:
    """The labels of one teacher and one signal.

    Args:
        teacher: its fingerprint.
        model: its folder or hub id; empty where there is no manifest.
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


def store_stats(location: Location) -> list[StoreStats]:
    """Return what a store holds, by teacher and signal; only the heads of files are read."""
    found = []
    for folder, group in groupby(_label_files(location), key=lambda file: file.folder):
        teacher, _, signal = folder.partition("/")
        files = list(group)
        shards = [file for file in files if file.type == "shard"]
        counts = [_count(location, file) for file in shards]
        found.append(
            StoreStats(
                teacher=teacher,
                model=read_manifest(location, teacher).get("model", ""),
                signal=signal,
                labels=sum(count for count in counts if count is not None),
                shards=len(shards),
                nbytes=sum(file.nbytes for file in shards),
                used_s=max((file.used_s for file in shards), default=0.0),
                damaged=len(files) - len(shards) + counts.count(None),
            )
        )
    return found


def verify_store(location: Location, on_checked: Callable[[StoredFile], None]) -> list[str]:
    """Check every shard of a store against its checksum.

    Args:
        location: the store.
        on_checked: called with each file after its check.

    Returns:
        What is wrong, a line a file; files that were set aside before are among it.
    """
    wrong = []
    for file in _label_files(location):
        if file.type == "damaged":
            wrong.append(f"{file.path}: set aside as damaged before")
        else:
            wrong += _check(location, file)
        on_checked(file)
    return wrong


def _check(location: Location, file: StoredFile) -> list[str]:
    location.forget(file.path)  # the store is checked, not this machine's copy
    try:
        Shard(location.fetch(file.path), file.folder).verify()
    except FileNotFoundError:
        return []  # deleted or compacted since it was listed
    except UnusableShardError as error:
        return [f"{file.path}: {error}"]
    return []


def _label_files(location: Location) -> list[StoredFile]:
    """Return shards, whole and damaged, folder by folder."""
    files = [file for file in location.files() if file.type in ("shard", "damaged")]
    return sorted(files, key=lambda file: (file.folder, file.name))


def _count(location: Location, file: StoredFile) -> int | None:
    try:
        with location.open(file.path) as source:
            return read_label_count(file.path, source)
    except (FileNotFoundError, UnusableShardError):
        return None
