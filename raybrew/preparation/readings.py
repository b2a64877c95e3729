"""What the models of a job say without their weights, each read once."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from raybrew.config import DistillJob, Teacher
from raybrew.errors import ConfigError
from raybrew.labels.fingerprint import model_fingerprint
from raybrew.preparation.checks import TeacherModel, check_student, read_teacher
from raybrew.preparation.tables import Table

__all__ = ["Readings"]

StudentModel = tuple[PreTrainedConfig, PreTrainedTokenizerBase]


class Readings:
    """Configurations, tokenizers and fingerprints, kept as long as this object lives.

    One job asks once; a sweep asks for many jobs that differ in a few fields. Files that change
    meanwhile aren't seen.
    """

    def __init__(self, fingerprints: Mapping[tuple[str, ...], str] | None = None):
        self._teachers: dict[tuple[str, bool], TeacherModel] = {}
        self._students: dict[str, StudentModel] = {}
        self._folders: dict[str, Path] = {}
        self.fingerprints: dict[tuple[str, ...], str] = dict(fingerprints or {})

    def teacher(self, teacher: Teacher) -> TeacherModel:
        """Return a teacher's configuration and tokenizer."""
        key = (teacher.model_path, teacher.trust_remote_code)
        if key not in self._teachers:
            self._teachers[key] = read_teacher(teacher)
        return self._teachers[key]

    def student(self, job: DistillJob, tables: Sequence[Table]) -> StudentModel:
        """Return the student's configuration and tokenizer, checked."""
        # All that it follows from: its section, the teachers it may start from, the classes.
        key = json.dumps(
            [
                job.student.model_dump(mode="json"),
                [(t.name, t.model, t.trust_remote_code) for t in job.teachers],
                [(table.task.model_dump(mode="json"), table.label_names) for table in tables],
            ]
        )
        if key not in self._students:
            self._students[key] = check_student(job.student, list(tables), job.hosts())
        return self._students[key]

    def folder(self, teacher: Teacher) -> Path:
        """Return the local folder of a teacher's files."""
        path = teacher.model_path
        if path not in self._folders:
            self._folders[path] = _local_folder(teacher)
        return self._folders[path]

    def fingerprint(self, teacher: Teacher, *, adaptor: str) -> str:
        """Return the fingerprint of a teacher's answers."""
        folder, trust = self.folder(teacher), teacher.trust_remote_code
        key = (str(folder), teacher.dtype, adaptor, *(["its code"] if trust else []))
        if key not in self.fingerprints:
            self.fingerprints[key] = model_fingerprint(
                folder, dtype=teacher.dtype, adaptor=adaptor, own_code=trust
            )
        return self.fingerprints[key]


def _local_folder(teacher: Teacher) -> Path:
    folder = Path(teacher.model_path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    try:
        patterns = ["*.json", "*.safetensors", "pytorch_model*.bin", "*.txt", "*.model"]
        patterns += ["*.py"] if teacher.trust_remote_code else []
        return Path(snapshot_download(teacher.model_path, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"teachers[{teacher.name}].model: {teacher.model!r} is no folder, and as a hub id it "
            f"can't be had: {error}"
        ) from error
