"""Whether a job may go on with a run that was stopped: the student must come out the same."""

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raybrew.config import DistillJob, TrainJob
from raybrew.errors import ConfigError
from raybrew.job_yaml import parse_yaml
from raybrew.jobfile import absolute_plain, resolve_paths

__all__ = ["load_yaml", "same_run"]

_FREE = re.compile(
    r"tracking\..*"
    r"|labels\.(store|when|window|max_windows|max_bytes|on_full|cache|cache_max_bytes)"
    r"|teachers\.\d+\.(replicas|resources(\..*)?|batch_tokens|on_loss|deadline_s|lost_after_s)"
    r"|training\.(num_threads|eval_batch_size|prefetch|checkpoint_every|checkpoint_every_minutes|on_nan)"
)
"""Fields that may change: they say where, how fast, and what is done about faults."""


def load_yaml(path: Path) -> Mapping[str, Any]:
    """Read the job that a run was started with."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected the job of a run in UTF-8, got: {error}") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: expected the job of a run, got {type(values).__name__}")
    return values


def same_run(saved: Mapping[str, Any], job: DistillJob | TrainJob) -> None:
    """Refuse to resume a run with a job whose student would be another.

    Args:
        saved: the job that the run was started with.
        job: the job to go on with.

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
            + "\nGo on with the job.yaml of the run's folder, or start a run of another name"
        )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and value of everything that is no mapping and no list."""
    if isinstance(value, Mapping):
        parts: Any = value.items()
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value)
    else:
        yield path, value
        return
    for key, each in parts:
        yield from _leaves(each, f"{path}.{key}" if path else str(key))
