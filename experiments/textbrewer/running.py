"""Runs a row: its teachers, where no earlier run has made them, then the row itself.

steps ──► job files ──► raybrew, as from its command line ──► reports ──► table beside the paper's
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import raybrew as rb
from experiments.textbrewer.benchmarks import HOTPOTQA
from experiments.textbrewer.jobs import Step, steps_of
from experiments.textbrewer.rows import Row
from experiments.textbrewer.smoke import StandIns, smoked
from raybrew.config.job_file import JobFile, dump_yaml, load_job
from raybrew.data.sources import load_source
from raybrew.runs.folder import check_resumable, read_saved_job
from raybrew.runs.ray_config import run_config_from, scaling_config_from
from raybrew.runs.report import render_table

Runner = Callable[[Step, JobFile], Any]
"""Runs a step whose job is loaded; what it leaves in the run's folder is what counts."""


def on_ray(step: Step, file: JobFile) -> rb.RunResult:
    """Run a step as raybrew's command line does."""
    call: Any = rb.distill if step.kind is rb.DistillJob else rb.train
    return call(
        file.job,
        scaling_config=scaling_config_from(file.scaling),
        run_config=run_config_from(file.run),
        resume=step.folder.is_dir(),
    )


def write_jobs(
    row: Row, folder: Path, runs: Path, stand_ins: StandIns | None = None
) -> list[tuple[Step, Path]]:
    """Write the jobs of a row as files that raybrew's command line takes, in the order they run.

    Args:
        row: which.
        folder: where the files go.
        runs: where the runs will go.
        stand_ins: for what comes from the hub; None for the real thing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for step in steps_of(row, runs):
        values = step.values if stand_ins is None else smoked(step.values, stand_ins)
        path = folder / f"{step.name}.yaml"
        path.write_text(dump_yaml(values), encoding="utf-8")
        written.append((step, path))
    return written


def run_row(
    row: Row,
    runs: Path,
    *,
    stand_ins: StandIns | None = None,
    overrides: Sequence[str] = (),
    runner: Runner = on_ray,
) -> str:
    """Run a row, and return the table of its scores.

    Args:
        row: which.
        runs: folder of the runs; teachers that are there already are not trained again.
        stand_ins: for what comes from the hub; None for the real thing.
        overrides: changes of the row's own job, as `--set` of raybrew has them.
        runner: runs each step.

    Raises:
        RaybrewError: as raybrew's own commands.
    """
    written = write_jobs(row, runs / "jobs", runs, stand_ins)
    # All are read before any runs: a mistake in the last one shouldn't wait for the teachers.
    files = [load_job(step.kind, path) for step, path in written[:-1]]
    files.append(load_job(written[-1][0].kind, written[-1][1], overrides))
    _check_data([file.job.tasks[0] for file in files])
    for (step, _), file in zip(written, files, strict=True):
        if _is_done(step, file.job):
            print(f"== {step.name}: kept from an earlier run in {step.folder}", flush=True)
            continue
        print(f"== {step.name}", flush=True)
        runner(step, file)
    further = {
        suffix: source if stand_ins is None else stand_ins.of(source)
        for suffix, source in row.data.further.items()
    }
    return _table(row, [step for step, _ in written], _on(files[-1].job, further))


def _check_data(tasks: Sequence[rb.Task]) -> None:
    if any(str(HOTPOTQA) in task.transfer for task in tasks) and not HOTPOTQA.is_file():
        raise rb.ConfigError(
            f"expected HotpotQA's sentences in {HOTPOTQA}, got no such file; make it first: "
            "python -m experiments.textbrewer.hotpotqa"
        )
    for task in tasks:
        for source in filter(None, (task.train, task.eval, *task.transfer)):
            load_source(source, f"tasks[{task.name}]")


def _is_done(step: Step, job: rb.DistillJob | rb.TrainJob) -> bool:
    if not (step.folder / "report.json").is_file():
        return False
    try:
        check_resumable(read_saved_job(step.folder / "job.yaml"), job)
    except rb.ConfigError as error:
        raise rb.ConfigError(
            f"{step.folder}: expected a run of this job or none, got another's; delete it, or "
            f"choose another --runs. {error}"
        ) from error
    return True


Jobs = Mapping[str, rb.DistillJob | rb.TrainJob]


def _on(job: rb.DistillJob | rb.TrainJob, further: Mapping[str, str | None]) -> Jobs:
    """Return the job with each of its other evaluation rows, by suffix of their metrics."""
    task = job.tasks[0]
    return {
        suffix: job.model_copy(update={"tasks": (task.model_copy(update={"eval": source}),)})
        for suffix, source in further.items()
    }


def _table(row: Row, steps: Sequence[Step], further: Jobs) -> str:
    reports = [json.loads((step.folder / "report.json").read_text()) for step in steps]
    scores = [
        [step.name, "", _score(row, _figures(row, step, report, further))]
        for step, report in zip(steps, reports, strict=True)
    ]
    scores[-1][1] = row.score
    if row.teachers > 1:
        scores.insert(-1, ["their mean", "", _score(row, reports[-1]["ensembles"][row.benchmark])])
    title = f"{row.benchmark}: {', '.join(row.data.metrics)}, in percent"
    table = render_table(title, ["", "published", "here"], scores)
    return table + (f"{row.name}: {row.note}\n" if row.note else "")


def _figures(row: Row, step: Step, report: Mapping[str, Any], further: Jobs) -> dict[str, float]:
    prefix = f"eval/{row.benchmark}/"
    figures = {name.removeprefix(prefix): value for name, value in report["metrics"].items()}
    for suffix, job in further.items():
        metrics = rb.evaluate(job, step.folder / "student")[row.benchmark]
        figures |= {f"{name} {suffix}": value for name, value in metrics.items()}
    return figures


def _score(row: Row, figures: Mapping[str, float]) -> str:
    # Of the mean of several teachers nothing is known but on the job's own evaluation rows.
    shown = [
        f"{100 * float(figures[name]):.1f}" if name in figures else "–" for name in row.data.metrics
    ]
    return "/".join(shown)
