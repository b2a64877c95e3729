"""Whose labels a folder of the store holds, for people: `<fingerprint>/manifest.json`.

    {"format": "raybrew-teacher-1", "fingerprint": "…", "teacher": "a", "model": "runs/teacher-a"}

Nothing depends on it: what a label is follows from the fingerprint alone.
"""

import json
from pathlib import Path

from raybrew.errors import LabelError
from raybrew.labels.location import FULL, Location, checked_name
from raybrew.refusals import explain

__all__ = ["MANIFEST", "read_manifest", "write_manifest"]

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
