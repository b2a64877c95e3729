"""The command line: `raybrew distill | label | train-teacher | tune JOB.yaml [--set a.b=c]`.

A user's mistake is one message and exit code 2; Ctrl-C is exit code 130, SIGTERM 143.

Commands import what they run: `--help` must not wait for torch and Ray.
"""

import os
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from raybrew.cli.store import app as store_app
from raybrew.errors import ConfigError, RaybrewError, Terminated

USAGE_ERROR, INTERRUPTED, TERMINATED = 2, 130, 143

_RESUMES = "; --resume continues the run"
_HINTS = {
    "distill": _RESUMES,
    "train-teacher": _RESUMES,
    "tune": _RESUMES,
    "label": "; what was computed is in the store, and the same command continues from there",
}
"""By command, what a user who interrupts it does next."""


class _Group(TyperGroup):
    """Turns errors into messages, before typer's own, silent way with an interrupt."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RaybrewError as error:
            print(f"raybrew: {error}", file=sys.stderr)
            raise typer.Exit(USAGE_ERROR) from error
        except KeyboardInterrupt as error:
            terminated = isinstance(error, Terminated)
            word = "terminated" if terminated else "interrupted"
            print(f"raybrew: {word}{_HINTS.get(ctx.invoked_subcommand, '')}", file=sys.stderr)
            raise typer.Exit(TERMINATED if terminated else INTERRUPTED) from error


app = typer.Typer(
    cls=_Group,
    help="Label once, brew many: knowledge distillation on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(store_app, name="store")

JobPath = Annotated[Path, typer.Argument(help="The job, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field, e.g. training.seed=1."),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue the run of this name (run.name) that was stopped."),
]


@app.command()
def distill(job: JobPath, set_: Overrides = None, resume: Resume = False) -> None:
    """Distil the job's teachers into its student."""
    from raybrew.api import distill as run
    from raybrew.config import DistillJob

    _run(run, DistillJob, job, set_, resume)


@app.command()
def label(job: JobPath, set_: Overrides = None) -> None:
    """Fill the store with the labels that the job needs, then free the teachers."""
    from raybrew.api import label as run
    from raybrew.config import DistillJob
    from raybrew.config.job_file import load_job
    from raybrew.runs.ray_config import run_config_from

    file = load_job(DistillJob, job, set_ or [], {"run": run_config_from})
    # `run.name` is the folder of the student's run; labels have a folder of their own beside it.
    own = f"{file.run.get('name') or ''}-label-{datetime.now():%Y%m%d-%H%M%S}".removeprefix("-")
    _print_report(run(file.job, run_config=run_config_from({**file.run, "name": own})))


@app.command("train-teacher")
def train_teacher(job: JobPath, set_: Overrides = None, resume: Resume = False) -> None:
    """Train one model on labels alone."""
    from raybrew.api import train as run
    from raybrew.config import TrainJob

    _run(run, TrainJob, job, set_, resume)


@app.command()
def tune(
    job: JobPath,
    set_: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the stopped sweep in run.name's folder.")
    ] = False,
) -> None:
    """Distil one student for each configuration of the file's `space:`; label once for all."""
    from raybrew.config import DistillJob
    from raybrew.config.job_file import load_job
    from raybrew.runs.ray_config import scaling_config_from
    from raybrew.sweeps.settings import tune_config_from, tune_run_config_from
    from raybrew.sweeps.space import space_from
    from raybrew.sweeps.sweep import tune as run

    build = {
        "space": space_from,
        "tune": tune_config_from,
        "scaling": scaling_config_from,
        "run": tune_run_config_from,
    }
    file = load_job(DistillJob, job, set_ or [], build)
    try:
        result = run(
            file.job,
            file.built["space"],
            tune_config=file.built["tune"],
            scaling_config=file.built["scaling"],
            run_config=file.built["run"],
            resume=resume,
        )
    except KeyboardInterrupt:
        if file.run.get("name"):
            print(f"raybrew: to continue: raybrew tune {job} --resume", file=sys.stderr)
        raise
    _print_report(result)


@app.command()
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


@app.command()
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


def main() -> None:
    """Run the command line; the console script."""
    # Read once, when the library is imported.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()


def _run(
    run: Callable[..., Any], kind: Any, path: Path, overrides: list[str] | None, resume: bool
) -> None:
    from raybrew.config.job_file import load_job
    from raybrew.runs.ray_config import run_config_from, scaling_config_from

    build = {"scaling": scaling_config_from, "run": partial(run_config_from, resume=resume)}
    file = load_job(kind, path, overrides or [], build)
    scaling, place = file.built["scaling"], file.built["run"]
    _print_report(run(file.job, scaling_config=scaling, run_config=place, resume=resume))


def _print_report(result: Any) -> None:
    print(Path(result.folder, "report.txt").read_text(encoding="utf-8"), end="")


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
