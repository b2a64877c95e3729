"""Commands on models: `raybrew evaluate | inspect`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from raybrew.errors import ConfigError

model_commands = typer.Typer()

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field, e.g. training.seed=1."),
]


@model_commands.command()
def evaluate(
    job: Annotated[Path, typer.Argument(help="A job's YAML file, or the folder of a run.")],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models to evaluate, folders or hub ids; if left out, the student of the run "
            "whose folder is given as JOB.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task of the job, for models of one task among several.")
    ] = None,
    set_: Overrides = None,
) -> None:
    """Evaluate models on the evaluation rows of a job's tasks."""
    from raybrew.config.job_file import load_job
    from raybrew.config.section import user_path
    from raybrew.evaluation.saved_models import evaluate as run
    from raybrew.runs.report import render_table

    path = user_path(job, "job")
    file = path / "job.yaml" if path.is_dir() else path
    if not models:
        if not path.is_dir() or not user_path(path / "student", "student").is_dir():
            raise ConfigError(
                f"evaluate: expected a model to evaluate, or the folder of a run with a student, "
                f"got {str(path)!r} alone"
            )
        models = [str(path / "student")]
    loaded = load_job(_job_type(file), file, set_ or []).job
    rows: dict[str, list[list[str]]] = {}
    names: dict[str, list[str]] = {}
    for model in models:
        for name, metrics in run(loaded, model, task=task).items():
            names.setdefault(name, list(metrics))
            rows.setdefault(name, []).append([model, *(_cell(metrics, n) for n in names[name])])
    for name, each in rows.items():
        print(render_table(name, ["", *names[name]], each))


@model_commands.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Folder of a model, or a hub id.")],
    max_level: Annotated[int, typer.Option(min=0, help="Levels of the parameter tree.")] = 3,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a timed example.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples of a timed batch.")] = 32,
) -> None:
    """Show what a model is made of, and how fast it is on this machine."""
    from raybrew.models.parameters import inspect_model

    for found in inspect_model(model, max_level=max_level, length=length, batch_size=batch_size):
        print(found)


def _cell(metrics: dict[str, float], name: str) -> str:
    if name not in metrics:
        return "–"
    return f"{metrics[name]:.0f}" if name == "examples" else f"{metrics[name]:.4f}"


def _job_type(file: Path) -> Any:
    """Return the type of job that a file holds; `load_job` reports what is wrong with it."""
    from raybrew.config import DistillJob, TrainJob
    from raybrew.config.job_file import parse_yaml

    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return DistillJob
    values = parse_yaml(text, str(file))
    trains = isinstance(values, dict) and "model" in values and "teachers" not in values
    return TrainJob if trains else DistillJob
