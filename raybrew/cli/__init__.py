"""The command line: `raybrew distill | label | train-teacher | tune JOB.yaml [--set a.b=c]`.

A mistake of the user's is one message and exit code 2; Ctrl-C is exit code 130, SIGTERM 143.
"""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from raybrew.cli.exit_codes import told
from raybrew.cli.store import app as store_app

GOES_ON = "; a run goes on with --resume"

app = typer.Typer(
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
    typer.Option("--resume", help="Go on with the run of this name (run.name) that was stopped."),
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
    with told("; what was computed is in the store, and the same command goes on from there"):
        from raybrew.cli.jobs import label as run

        run(job, set_ or [])


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
        bool, typer.Option("--resume", help="Go on with the stopped sweep in run.name's folder.")
    ] = False,
) -> None:
    """Distil one student for each configuration of the file's `space:`; teachers are asked once."""
    from raybrew.cli.jobs import tune as run

    with told(GOES_ON):
        run(job, set_ or [], resume=resume)


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
    from raybrew.cli.jobs import evaluate as run

    with told():
        run(job, models or [], task, set_ or [])


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Folder of a model, or a hub id.")],
    max_level: Annotated[int, typer.Option(min=0, help="Levels of the parameter tree.")] = 3,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a timed example.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples of a timed batch.")] = 32,
) -> None:
    """Show what a model is made of, and how fast it is on this machine."""
    from raybrew.cli.jobs import inspect as run

    with told():
        run(model, max_level=max_level, length=length, batch_size=batch_size)


def main() -> None:
    """Run the command line; the console script."""
    # Imported by what follows: set before, as it is read once.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()


def _run(run: Any, kind: Any, path: Path, overrides: list[str] | None, resume: bool) -> None:
    from raybrew.config.job_file import load_job
    from raybrew.runs.cluster import run_config_from, scaling_config_from

    with told(GOES_ON):
        file = load_job(kind, path, overrides or [])
        result = run(
            file.job,
            scaling_config=scaling_config_from(file.scaling),
            run_config=run_config_from(file.run, resume=resume),
            resume=resume,
        )
        print(Path(result.folder, "report.txt").read_text(encoding="utf-8"), end="")
