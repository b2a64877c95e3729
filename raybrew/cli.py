"""The command line: `raybrew distill | label | train-teacher JOB.yaml [--set a.b=c]`.

A mistake of the user's is one message and exit code 2; Ctrl-C is exit code 130.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from raybrew.errors import RaybrewError

__all__ = ["app", "main"]

USAGE_ERROR, INTERRUPTED = 2, 130

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


@app.command()
def distill(job: JobPath, set_: Overrides = None) -> None:
    """Distil the job's teachers into its student."""
    from raybrew.config import DistillJob
    from raybrew.driver import distill as run

    _run(run, DistillJob, job, set_)


@app.command()
def label(job: JobPath, set_: Overrides = None) -> None:
    """Fill the store with the labels that the job needs, then free the teachers."""
    with _told():
        from raybrew.commands.label import label as run

        run(job, set_ or [])


@app.command("train-teacher")
def train_teacher(job: JobPath, set_: Overrides = None) -> None:
    """Train one model on labels alone."""
    from raybrew.config import TrainJob
    from raybrew.driver import train as run

    _run(run, TrainJob, job, set_)


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
        print("raybrew: interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from error


def _run(run: Any, kind: Any, path: Path, overrides: list[str] | None) -> None:
    from raybrew.cluster import run_config_from, scaling_config_from
    from raybrew.jobfile import load_job

    with _told():
        file = load_job(kind, path, overrides or [])
        result = run(
            file.job,
            scaling_config=scaling_config_from(file.scaling),
            run_config=run_config_from(file.run),
        )
        print(Path(result.folder, "report.txt").read_text(encoding="utf-8"), end="")
