"""The folder of a run, `<storage_path>/<name>`, and what raybrew keeps in it.

job.yaml         the resolved job
metrics.jsonl    losses and evaluations
report.json      figures of the run      report.txt  the same as tables
student/         the student, as transformers loads it
data/            encoded examples
checkpoints/     the newest, and the best; see student/checkpoints
events.jsonl     what the run survived
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raybrew.config import DistillJob, TrainJob
from raybrew.errors import ConfigError
from raybrew.paths import user_path
from raybrew.resuming import load_yaml, same_run

__all__ = ["RunFolder"]


class RunFolder:
    """A run's folder on a disk that every node of the run sees."""

    def __init__(self, storage_path: str, name: str):
        scheme = urlsplit(storage_path).scheme
        if scheme not in ("", "file"):
            raise ConfigError(
                f"run.storage_path: expected a folder that every node sees (a disk, NFS), got "
                f"{storage_path!r}; {scheme}:// is not supported"
            )
        storage = user_path(urlsplit(storage_path).path, "run.storage_path")
        self.path = user_path(storage.absolute() / name, "run.name")
        self._made = False

    @property
    def data(self) -> Path:
        """Folder of the encoded splits."""
        return self.path / "data"

    @property
    def student(self) -> Path:
        """Folder of the student."""
        return self.path / "student"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def create(self, job: DistillJob | TrainJob, *, resume: bool = False) -> None:
        """Make the folder, or take up the run that it holds.

        Args:
            job: what the run does.
            resume: whether to go on with a run that was stopped.

        Raises:
            ConfigError: it holds a run already, or none to resume, or that of another job, or
                it can't be made.
        """
        saved = self.path / "job.yaml"
        if resume and not self.path.is_dir():
            raise ConfigError(
                f"run.name: expected a run to resume in {self.path}, got no such folder; name the "
                "run that was stopped (run.name, run.storage_path), or leave --resume out"
            )
        if resume and saved.exists():
            same_run(load_yaml(saved), job)
        if not resume and saved.exists():
            raise ConfigError(
                f"run.name: {self.path} holds a run already; go on with it (--resume), choose "
                "another name, or delete it"
            )
        self._made = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run.storage_path: {self.path} can't be made: {error}") from error

    def withdraw(self) -> None:
        """Remove the folder of a run that was refused: made for it, and never begun."""
        if self._made and not (self.path / "job.yaml").exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder, whole or not at all."""
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(self.path / name)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write values as a JSON file."""
        self.write(name, json.dumps(values, indent=1) + "\n")

    def export_student(self, source: Path) -> None:
        """Copy a checkpoint's model to `student/`."""
        temporary = self.path / ".student.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        shutil.rmtree(self.student, ignore_errors=True)
        temporary.rename(self.student)
