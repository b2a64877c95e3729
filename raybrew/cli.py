"""The command line: `raybrew distill | label | train-teacher | tune JOB.yaml [--set a.b=c]`.

A mistake of the user's is one message and exit code 2; Ctrl-C is exit code 130, SIGTERM 143.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from raybrew.errors import RaybrewError
from raybrew.interrupts import Terminated

__all__ = ["app", "main"]

USAGE_ERROR, INTERRUPTED, TERMINATED = 2, 130, 143

app = typer.Typer(
    help="Label once, brew many: knowledge distillation on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

JobPath = Annotated[Path, typer.Argument(help="The job, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field, e.g. training.seed=1."),
]

Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the run of this name (run.name) that was stopped."),
]


@app.command()
def distill(job: JobPath, set_: Overrides = None, resume: Resume = False) -> None:
    """Distil the job's teachers into its student."""
    from raybrew.config import DistillJob
    from raybrew.driver import distill as run

    _run(run, DistillJob, job, set_, resume)


@app.command()
def label(job: JobPath, set_: Overrides = None) -> None:
    """Fill the store with the labels that the job needs, then free the teachers."""
    with _told():
        from raybrew.commands.label import label as run

        run(job, set_ or [])


@app.command("train-teacher")
def train_teacher(job: JobPath, set_: Overrides = None, resume: Resume = False) -> None:
    """Train one model on labels alone."""
    from raybrew.config import TrainJob
    from raybrew.driver import train as run

    _run(run, TrainJob, job, set_, resume)


@app.command()
def tune(
    job: JobPath,
    set_: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the stopped sweep in run.name's folder.")
    ] = False,
) -> None:
    """Distil one student for each configuration of the file's `space:`; teachers are asked once."""
    from raybrew.commands.tune import tune as run

    with _told():
        run(job, set_ or [], resume=resume)


@app.command()
def evaluate(
    job: Annotated[Path, typer.Argument(help="A job's YAML file, or the folder of a run.")],
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Models to evaluate, folders or hub ids; the run's student."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task of the job, for models of one task among several.")
    ] = None,
    set_: Overrides = None,
) -> None:
    """Evaluate models on the evaluation rows of a job's tasks."""
    from raybrew.commands.evaluate import evaluate as run

    with _told():
        run(job, models or [], task, set_ or [])


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Folder of a model, or a hub id.")],
    max_level: Annotated[int, typer.Option(min=0, help="Levels of the parameter tree.")] = 3,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a timed example.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples of a timed batch.")] = 32,
) -> None:
    """Show what a model is made of, and how fast it is on this machine."""
    from raybrew.commands.inspect import inspect as run

    with _told():
        run(model, max_level=max_level, length=length, batch_size=batch_size)


def main() -> None:
    """Run the command line; the console script."""
    # Imported by what follows: set before, as it is read once.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()


@contextmanager
def _told() -> Iterator[None]:
    # Inside of the command: typer has its own, silent way with an interrupt.
    try:
        yield
    except RaybrewError as error:
        print(f"raybrew: {error}", file=sys.stderr)
        raise typer.Exit(USAGE_ERROR) from error
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        word = "terminated" if terminated else "interrupted"
        print(f"raybrew: {word}; a run goes on with --resume", file=sys.stderr)
        raise typer.Exit(TERMINATED if terminated else INTERRUPTED) from error


def _run(run: Any, kind: Any, path: Path, overrides: list[str] | None, resume: bool) -> None:
    from raybrew.cluster import run_config_from, scaling_config_from
    from raybrew.jobfile import load_job

    with _told():
        file = load_job(kind, path, overrides or [])
        result = run(
            file.job,
            scaling_config=scaling_config_from(file.scaling),
            run_config=run_config_from(file.run),
            resume=resume,
        )
        print(Path(result.folder, "report.txt").read_text(encoding="utf-8"), end="")
