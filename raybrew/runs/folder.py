"""The folder of a run, `<storage_path>/<name>`, and whether a job may resume the run in it.

job.yaml         the resolved job
metrics.jsonl    losses and evaluations
events.jsonl     faults that the run recovered from
report.json      results of the run      report.txt  the same as tables
report.html      the same as a page, with curves, a comparison and examples
student/         the student, as transformers loads it
data/            encoded examples
checkpoints/     the newest, and the best; see training.checkpoints
"""

import copy
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from raybrew.config import DistillJob, TrainJob
from raybrew.config.job_file import absolute_plain, parse_yaml, resolve_paths
from raybrew.config.section import is_uri, user_path
from raybrew.data.files import to_json
from raybrew.errors import ConfigError
from raybrew.runs.defaults import adopt_chosen
from raybrew.runs.ray_config import RUN, RUNS, check_arguments
from raybrew.runs.report import RunResult

_BEFORE_THE_JOB = {"data", "space.json", ".job.yaml.tmp", ".space.json.tmp"}
"""What a run has in its folder before it writes its job."""
_AT_THE_START = {
    *_BEFORE_THE_JOB,
    *("job.yaml", "metrics.jsonl", "events.jsonl", "tensorboard", "wandb"),
}
"""What it has before its first step."""


class RunFolder:
    """A run's folder on a disk that every node of the run sees."""

    def __init__(self, storage_path: str, name: str):
        check_arguments(RunFolder, "run", {"name": name, "storage_path": storage_path}, RUN)
        storage = user_path(_local(storage_path), "run.storage_path")
        self.path = user_path(storage.absolute() / name, "run.name")
        self._made: list[Path] = []  # the folder and its parents, those that did not exist
        self._before: set[str] | None = None  # what it held

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
        """Create the folder, or open the run that it holds to resume it.

        Args:
            job: what the run does.
            resume: whether to resume a run that was stopped.

        Raises:
            ConfigError: it holds a run already, or none to resume, or that of another job, or
                something else, or it can't be created.
        """
        try:
            self._check(job, resume)
            self._made = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self._before = set() if self._made else self._entries()
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run.storage_path: {self.path} can't be created: {error}") from error

    def with_chosen(self, job: DistillJob | TrainJob) -> DistillJob | TrainJob:
        """Return the job with what the run in this folder has chosen, if it holds one."""
        saved = self.path / "job.yaml"
        return adopt_chosen(job, read_saved_job(saved)) if saved.exists() else job

    def _check(self, job: DistillJob | TrainJob, resume: bool) -> None:
        saved = self.path / "job.yaml"
        if resume and not self.path.is_dir():
            raise ConfigError(
                f"run.name: expected a run to resume in {self.path}, got no such folder; name the "
                "run that was stopped (run.name, run.storage_path), or leave --resume out"
            )
        if resume and saved.exists():
            began = read_saved_job(saved)
            check_resumable(began, adopt_chosen(job, began))
        if not resume and saved.exists():
            raise ConfigError(
                f"run.name: {self.path} holds a run already; resume it (--resume), choose another "
                "name, or delete it"
            )
        if not self.path.is_dir() or saved.exists():
            return
        if foreign := sorted(self._entries() - _BEFORE_THE_JOB):
            listed = ", ".join(foreign[:8]) + (", …" if len(foreign) > 8 else "")
            raise ConfigError(
                f"run.name: expected {'the folder of a run' if resume else 'a new folder'}, got "
                f"{self.path}, which has no job.yaml, but holds {listed}; choose another name"
            )

    def remove_unused(self, *, refused: bool = False) -> None:
        """Remove what was created for a run that never started training.

        Args:
            refused: whether the job was refused, which may happen after it was written.
        """
        if self._before is None or "job.yaml" in self._before or not self.path.is_dir():
            return
        now = self._entries()
        if now <= _AT_THE_START if refused else "job.yaml" not in now:
            for name in (now - self._before) & _AT_THE_START:
                _remove(self.path / name)
            for folder in self._made:
                with suppress(OSError):  # another process wrote to it
                    folder.rmdir()

    def result(self) -> RunResult | None:
        """Return what a finished run left; None where it isn't finished."""
        files = [self.path / name for name in ("report.json", "report.txt", "student")]
        if not all(each.exists() for each in files):
            return None
        values = json.loads(files[0].read_text(encoding="utf-8"))
        known = {each.name for each in fields(RunResult)}
        # What later versions add is left out. Of a sweep the report holds something else.
        if not isinstance(values, dict) or not {"folder", "student", "metrics"} <= values.keys():
            return None
        found: dict[str, Any] = {name: each for name, each in values.items() if name in known}
        # As they are now: the folder may have been moved.
        found |= {"folder": str(self.path), "student": str(self.student)}
        return RunResult(**found)

    def _entries(self) -> set[str]:
        return {entry.name for entry in self.path.iterdir()}

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder, whole or not at all."""
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(self.path / name)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write values as a JSON file; a callable, or anything else, as its text."""
        self.write(name, to_json(values, indent=1, default=str) + "\n")

    def export_student(self, source: Path) -> None:
        """Copy a checkpoint's model to `student/`."""
        temporary = self.path / ".student.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        shutil.rmtree(self.student, ignore_errors=True)
        temporary.rename(self.student)


def _local(storage_path: str) -> str:
    """Return the path that a text is, or that a `file:` URI stands for."""
    if not is_uri(storage_path):
        return storage_path
    parts = urlsplit(storage_path)
    if parts.scheme != "file":
        raise ConfigError(
            f"run.storage_path: expected a folder that every node sees (a disk, NFS), got "
            f"{storage_path!r}; {parts.scheme}:// is not supported"
        )
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise ConfigError(
            f"run.storage_path: expected file:///<path>, with # as %23 and ? as %3F, got "
            f"{storage_path!r}; a path alone is taken as it is"
        )
    return unquote(parts.path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def finished_run(job: DistillJob | TrainJob, run: Mapping[str, Any]) -> RunResult | None:
    """Return the results of the run that a job is to resume; None where it isn't finished.

    Args:
        job: what the run is to do.
        run: arguments of Ray's RunConfig, among them the name.

    Raises:
        ConfigError: the run is that of another job.
    """
    folder = RunFolder(run.get("storage_path") or RUNS, run["name"])
    result = folder.result()
    if result is not None:
        check_resumable(read_saved_job(folder.path / "job.yaml"), job)
    return result


# Whether a job may resume a run that was stopped: the student must come out the same.

_FREE = re.compile(
    r"tracking\..*"
    r"|labels\.(store|when|window|max_windows|max_bytes|on_full|cache|cache_max_bytes)"
    r"|teachers\.\d+\.(replicas|resources(\..*)?|batch_tokens|on_loss|deadline_s|lost_after_s)"
    r"|training\.(num_threads|eval_batch_size|prefetch|checkpoint_every|checkpoint_every_minutes|on_nan)"
)
"""Fields that may change: where, how fast, and what is done about faults."""


def read_saved_job(path: Path) -> Mapping[str, Any]:
    """Read the job that a run was started with."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected the job of a run in UTF-8, got: {error}") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: expected the job of a run, got {type(values).__name__}")
    return values


def check_resumable(saved: Mapping[str, Any], job: DistillJob | TrainJob) -> None:
    """Refuse to resume a run with a job that would train another student.

    Args:
        saved: the job that the run was started with.
        job: the job to resume it with.

    Raises:
        ConfigError: names each field that differs, with both values.
    """
    began = copy.deepcopy(dict(saved))
    resolve_paths(began, Path.cwd())  # those of a run that was started from Python
    before, now = dict(_leaves(began)), dict(_leaves(absolute_plain(job)))
    changed = [
        f"{path}: the run has {before.get(path)!r}, the job {now.get(path)!r}"
        for path in sorted({*before, *now})
        if before.get(path) != now.get(path) and not _FREE.fullmatch(path)
    ]
    if changed:
        raise ConfigError(
            "--resume: expected the job that the run was started with, got\n"
            + "\n".join(changed)
            + "\nResume with the job.yaml of the run's folder, or start a run of another name"
        )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and value of everything but mappings and lists."""
    if isinstance(value, Mapping):
        parts: Any = value.items()
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value)
    else:
        yield path, value
        return
    for key, each in parts:
        yield from _leaves(each, f"{path}.{key}" if path else str(key))
