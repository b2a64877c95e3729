"""The commands that take a job file: evaluate, label, tune; and inspect."""

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from raybrew.api import label as fill
from raybrew.config import DistillJob, TrainJob
from raybrew.config.job_file import load_job, parse_yaml
from raybrew.config.paths import user_path
from raybrew.errors import ConfigError
from raybrew.evaluation.saved_models import evaluate as evaluate_model
from raybrew.models.parameters import inspect_model, render_inspection
from raybrew.runs.cluster import run_config_from, scaling_config_from
from raybrew.runs.ray_config import check_ray_arguments
from raybrew.runs.report import render_table
from raybrew.sweeps.settings import tune_config_from, tune_run_config_from
from raybrew.sweeps.space import space_from
from raybrew.sweeps.sweep import tune as sweep

# `raybrew evaluate`: what models are worth on a job's evaluation rows.


def evaluate(path: Path, models: Sequence[str], task: str | None, overrides: Sequence[str]) -> None:
    """Print a table of each task.

    Args:
        path: a job's file, or a run's folder, which has its job and its student.
        models: what to evaluate; the run's student if empty.
        task: which task of the job models of one task are evaluated on.
        overrides: of `--set`.

    Raises:
        ConfigError: no model was named, and no student is there.
    """
    path = user_path(path, "job")
    run = path if path.is_dir() else None
    file = path / "job.yaml" if run else path
    if not models:
        if run is None or not user_path(run / "student", "student").is_dir():
            raise ConfigError(
                f"evaluate: expected a model to evaluate, or the folder of a run with a student, "
                f"got {str(path)!r} alone"
            )
        models = [str(run / "student")]
    job = load_job(_kind_of(file), file, overrides).job
    rows: dict[str, list[list[str]]] = {}
    names: dict[str, list[str]] = {}
    for model in models:
        for name, figures in evaluate_model(job, model, task=task).items():
            names.setdefault(name, list(figures))
            rows.setdefault(name, []).append([model, *(_shown(figures, n) for n in names[name])])
    for name, each in rows.items():
        print(render_table(name, ["", *names[name]], each))


def _shown(figures: dict[str, float], name: str) -> str:
    if name not in figures:
        return "–"
    return f"{figures[name]:.0f}" if name == "examples" else f"{figures[name]:.4f}"


def _kind_of(file: Path) -> type[DistillJob] | type[TrainJob]:
    """Tell the two kinds of job apart; what is wrong with the file is for `load_job` to say."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return DistillJob
    values = parse_yaml(text, str(file))
    trains = isinstance(values, dict) and "model" in values and "teachers" not in values
    return TrainJob if trains else DistillJob


# `raybrew inspect`: the parameter tree, memory, latency, throughput.


def inspect(model: str, *, max_level: int, length: int, batch_size: int) -> None:
    """Look at a model and print what was found; see `inspect_model`."""
    for found in inspect_model(model, max_level=max_level, length=length, batch_size=batch_size):
        print(render_inspection(found))


# `raybrew label`: every label that a job needs, into the store, at the teachers' full speed.


def label(path: Path, overrides: Sequence[str]) -> None:
    """Fill the store and print the counts.

    Args:
        path: the job file.
        overrides: of `--set`.
    """
    file = load_job(DistillJob, path, overrides)
    # `run.name` is the folder of the student's run; each filling has one of its own beside it.
    check_ray_arguments("run", file.run)
    own = f"{file.run.get('name') or ''}-label-{datetime.now():%Y%m%d-%H%M%S}".removeprefix("-")
    result = fill(file.job, run_config=run_config_from({**file.run, "name": own}))
    print(Path(result.folder, "report.txt").read_text(encoding="utf-8"), end="")


# `raybrew tune`: the sweep that a job file's `space:` and `tune:` describe.


def tune(path: Path, overrides: Sequence[str], *, resume: bool) -> None:
    """Run or continue the sweep, and print its tables.

    Args:
        path: the job file.
        overrides: of `--set`.
        resume: go on with a stopped sweep.
    """
    file = load_job(DistillJob, path, overrides)
    try:
        result = sweep(
            file.job,
            space_from(file.space),
            tune_config=tune_config_from(file.tune),
            scaling_config=scaling_config_from(file.scaling),
            run_config=tune_run_config_from(file.run),
            resume=resume,
        )
    except KeyboardInterrupt:
        if file.run.get("name"):
            print(f"raybrew: to go on: raybrew tune {path} --resume", file=sys.stderr)
        raise
    print(Path(result.folder, "report.txt").read_text(encoding="utf-8"), end="")
