"""`raybrew evaluate`: what models are worth on a job's evaluation rows."""

from collections.abc import Sequence
from pathlib import Path

from raybrew.config import DistillJob, TrainJob
from raybrew.errors import ConfigError
from raybrew.job_yaml import parse_yaml
from raybrew.jobfile import load_job
from raybrew.model_evaluation import evaluate as evaluate_model
from raybrew.paths import user_path
from raybrew.report import render_table

__all__ = ["evaluate"]


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
