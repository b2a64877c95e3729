"""The jobs of a row, in their order, and how they run."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import raybrew as rb
from experiments.textbrewer.published import HOTPOTQA, MODELS, Row
from experiments.textbrewer.smoke import StandIns, smoked
from raybrew.config import DistillJob, TrainJob
from raybrew.config.job_file import JobFile, dump_yaml, load_job
from raybrew.data.sources import load_source
from raybrew.runs.folder import check_resumable, read_saved_job
from raybrew.runs.ray_config import run_config_from, scaling_config_from
from raybrew.runs.report import render_table

# From a row to its jobs, as plain values: those of its teachers, and its own.
#
#     row ──► [teacher 1, …, teacher n,] the row itself        each a job file of raybrew's
#
# A run lies in `<runs>/<benchmark>-<name>`; what a teacher's run leaves there is what students ask.

SEVERAL = {"num_epochs": 10, "learning_rate": 2e-5}
"""How one model of the teachers' size learns from several of them."""


@dataclass(frozen=True)
class Step:
    """One run that a row needs.

    Args:
        name: of the run.
        kind: what `values` are.
        values: the job, with Ray's sections.
    """

    name: str
    kind: type[DistillJob] | type[TrainJob]
    values: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.values["run"]["storage_path"], self.name)


def steps_of(row: Row, runs: Path) -> list[Step]:
    """Return the jobs of a row, in the order in which they run.

    Args:
        row: which.
        runs: folder of the runs.
    """
    if row.kind == "teacher":
        return [_teacher(row, 1, runs)]
    if row.kind == "alone":
        section = row.origin.section(row.base, None)
        return [_trained(row, f"{row.benchmark}-{row.name}", section, 0, runs)]
    teachers = [_teacher(row, number, runs) for number in range(1, row.teachers + 1)]
    return [*teachers, _distilled(row, teachers, runs)]


def _teacher(row: Row, number: int, runs: Path) -> Step:
    name = f"{row.benchmark}-{row.base}" + (f"-{number}" if number > 1 else "")
    return _trained(row, name, {"model": MODELS[row.base]}, number - 1, runs)


def _trained(row: Row, name: str, model: Mapping[str, Any], seed: int, runs: Path) -> Step:
    # A student with random weights takes the steps of distillation to learn anything.
    recipe = row.data.student if "preset" in model else row.data.teacher
    values = {
        "tasks": [_task(row)],
        "model": dict(model),
        "training": {**recipe, "seed": seed},
        "scaling": {"num_workers": 1, "use_gpu": True},
        "run": {"name": name, "storage_path": str(runs.absolute())},
    }
    return Step(name, TrainJob, values)


def _distilled(row: Row, teachers: list[Step], runs: Path) -> Step:
    names = [f"teacher-{number}" for number in range(1, len(teachers) + 1)]
    # One GPU holds all: the student has half of it, the teachers the other half.
    share = 0.5 / len(teachers)
    training = dict(row.data.student)
    if row.base in row.data.constant_rate_with:
        training["lr_scheduler"] = "constant_with_warmup"
    if len(teachers) > 1:
        training |= SEVERAL
    task = _task(row)
    if row.augmented:
        task["transfer"] = list(row.data.transfer)
    name = f"{row.benchmark}-{row.name}"
    values = {
        "tasks": [task],
        "teachers": [
            {
                "name": name,
                "task": row.benchmark,
                "model": str(teacher.folder.absolute() / "student"),
                "resources": {"CPU": 1, "GPU": share},
            }
            for name, teacher in zip(names, teachers, strict=True)
        ],
        "student": row.origin.section(row.base, names[0]),
        "distillation": {
            "temperature": row.data.temperature,
            "scale_t2": False,
            "hard_label_weight": 0.0,
            "matches": list(row.origin.matches),
        },
        "training": training,
        "labels": {"store": str(runs.absolute() / "labels"), **_room(row)},
        "scaling": {
            "num_workers": 1,
            "use_gpu": True,
            "resources_per_worker": {"CPU": 1, "GPU": 0.5},
        },
        "run": {"name": name, "storage_path": str(runs.absolute())},
    }
    return Step(name, DistillJob, values)


def _room(row: Row) -> dict[str, Any]:
    # Hidden states of all layers of hundreds of thousands of texts are more than most disks hold:
    # what has no room is computed again in each epoch.
    if not row.origin.matches:
        return {}
    return {"dtype": "bfloat16", "max_bytes": "200GB", "on_full": "go_on"}


def _task(row: Row) -> dict[str, Any]:
    return {"name": row.benchmark, **row.data.task}


# Runs a row: its teachers, where no earlier run has made them, then the row itself.
#
# steps ──► job files ──► raybrew, as from its command line ──► reports ──► table beside the paper's

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
