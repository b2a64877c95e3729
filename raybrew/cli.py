"""The command line: `raybrew distill | train-teacher JOB.yaml [--set a.b=c]`.

A mistake of the user's is one message and exit code 2; Ctrl-C is exit code 130.
"""

import os
import sys
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
    try:
        app(standalone_mode=True)
    except RaybrewError as error:
        print(f"raybrew: {error}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt:
        print("raybrew: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _run(run: Any, kind: Any, path: Path, overrides: list[str] | None) -> None:
    from raybrew.cluster import run_config_from, scaling_config_from
    from raybrew.jobfile import load_job

    file = load_job(kind, path, overrides or [])
    result = run(
        file.job,
        scaling_config=scaling_config_from(file.scaling),
        run_config=run_config_from(file.run),
    )
    print(Path(result.folder, "report.txt").read_text(encoding="utf-8"), end="")
