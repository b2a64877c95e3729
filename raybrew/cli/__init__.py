"""The command line: `raybrew distill | label | train-teacher | tune JOB.yaml [--set a.b=c]`.

A user's mistake is one message and exit code 2; Ctrl-C is exit code 130, SIGTERM 143.

Commands import what they run: neither `--help` nor a mistake in a job file, or a file that isn't
there, waits for torch and Ray.
"""

import os
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from raybrew import __version__
from raybrew.cli.jobs import job_commands
from raybrew.cli.models import Overrides, model_commands
from raybrew.cli.store import app as store_app
from raybrew.errors import RaybrewError, Terminated
from raybrew.training.progress import say

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
            # A command gives its own hint where it knows better what there is.
            hint = error.args[0] if error.args else _HINTS.get(ctx.invoked_subcommand, "")
            print(f"raybrew: {word}{hint}", file=sys.stderr)
            raise typer.Exit(TERMINATED if terminated else INTERRUPTED) from error


app = typer.Typer(
    cls=_Group,
    help="Label once, brew many: knowledge distillation on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(store_app, name="store")
app.add_typer(job_commands)
app.add_typer(model_commands)

JobPath = Annotated[Path, typer.Argument(help="The job, a YAML file.", show_default=False)]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue the run of this name (run.name) that was stopped."),
]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"raybrew {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    # Its text is the app's.
    pass


@app.command()
def distill(job: JobPath, set_: Overrides = None, resume: Resume = False) -> None:
    """Distil the job's teachers into its student."""
    _run("distill", job, set_, resume)


@app.command()
def label(job: JobPath, set_: Overrides = None) -> None:
    """Fill the store with the labels that the job needs, then free the teachers."""
    from raybrew.config import DistillJob
    from raybrew.runs.ray_config import run_config_from

    file = _read(DistillJob, job, set_, {"run": run_config_from})
    from raybrew.api import label as run

    # `run.name` is the folder of the student's run; labels have a folder of their own beside it.
    own = f"{file.run.get('name') or ''}-label-{datetime.now():%Y%m%d-%H%M%S}".removeprefix("-")
    result = run(file.job, run_config=run_config_from({**file.run, "name": own}))
    _print_report(result, file.job)


@app.command("train-teacher")
def train_teacher(job: JobPath, set_: Overrides = None, resume: Resume = False) -> None:
    """Train one model on labels alone."""
    _run("train", job, set_, resume)


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

    # First what can be checked without Ray Tune.
    _read(DistillJob, job, set_, {"scaling": scaling_config_from})
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
    _print_report(result, file.job)


def main() -> None:
    """Run the command line; the console script."""
    # Read once, when the library is imported.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()


def _run(what: str, path: Path, overrides: list[str] | None, resume: bool) -> None:
    from raybrew.config import DistillJob, TrainJob
    from raybrew.runs.folder import finished_run
    from raybrew.runs.ray_config import run_config_from, scaling_config_from

    build = {"scaling": scaling_config_from, "run": partial(run_config_from, resume=resume)}
    file = _read(TrainJob if what == "train" else DistillJob, path, overrides, build)
    if resume and (result := finished_run(file.job, file.run)):
        say(f"{result.folder} holds a finished run: nothing is left to do")
        print(Path(result.folder, "report.txt").read_text(encoding="utf-8"), end="")
        return
    say("importing torch, transformers and Ray")
    from raybrew import api

    run = getattr(api, what)
    scaling, place = file.built["scaling"], file.built["run"]
    try:
        result = run(file.job, scaling_config=scaling, run_config=place, resume=resume)
    except KeyboardInterrupt as error:
        if not _has_begun(file.run):
            raise type(error)("; nothing had begun yet") from error
        raise
    _print_report(result, file.job)


def _has_begun(run: Mapping[str, Any]) -> bool:
    """Whether there is a run to resume, in the folder that a job file names."""
    from raybrew.runs.folder import RunFolder
    from raybrew.runs.ray_config import RUNS

    if not run.get("name"):  # its folder has a name that was made up
        return True
    return (RunFolder(run.get("storage_path") or RUNS, run["name"]).path / "job.yaml").exists()


def _read(
    kind: Any,
    path: Path,
    overrides: list[str] | None,
    build: Mapping[str, Callable[[dict[str, Any]], Any]],
) -> Any:
    """Read a job file, and check what takes neither torch nor Ray's clusters to check."""
    from raybrew.config.job_file import load_job
    from raybrew.config.paths import check_paths

    say(f"reading {path}")
    file = load_job(kind, path, overrides or [], build)
    check_paths(file.job)
    return file


def _print_report(result: Any, job: Any) -> None:
    if not job.tracking.progress:  # else the run has printed it
        print(Path(result.folder, "report.txt").read_text(encoding="utf-8"), end="")
