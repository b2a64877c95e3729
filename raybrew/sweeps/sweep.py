"""`tune`: one student for each configuration of a space; each label is computed once.

check the space ──► Ray ──► encode ──► labels of all trials ──► teachers released
    ──► trials ──► table, report, best student, best job
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ray import tune as ray_tune
from ray.train import RunConfig, ScalingConfig

from raybrew.config import DistillJob
from raybrew.config.job import get_path, values_of
from raybrew.config.job_file import absolute_plain, dump_yaml
from raybrew.errors import ConfigError, TeacherError, collect_mistakes
from raybrew.evaluation.stored_teachers import evaluate_teachers
from raybrew.runs.cluster import default_teacher_resources, run_folder
from raybrew.runs.folder import RunFolder
from raybrew.runs.precompute import Precompute
from raybrew.runs.ray_config import SCALING, check_arguments
from raybrew.runs.report import PAGE, read_baseline, show
from raybrew.runs.run import Run
from raybrew.runs.tracking import check_tracking
from raybrew.sweeps.results import TrialRow, TuneResult, best_of, ranked, results_csv
from raybrew.sweeps.search import Search, TrialMonitor
from raybrew.sweeps.settings import (
    check_labels,
    check_metric,
    check_points,
    check_space,
    copies_checkpoints,
    mutated_ranges,
    scaling_section,
    with_defaults,
)
from raybrew.sweeps.space import JobSpace, Range, range_of
from raybrew.sweeps.trial import prepare_sweep, with_saved_data
from raybrew.training.build import check_class_orders
from raybrew.training.job import ResolvedJob
from raybrew.training.snapshot import STUDENT
from raybrew.training.world import World

SPACE = "space.json"
"""The space of a sweep, in its folder: it is resumed with the same space only."""
_NEEDED = ("optuna",)


def tune(
    job: DistillJob,
    space: Mapping[str, Any],
    *,
    tune_config: ray_tune.TuneConfig | None = None,
    scaling_config: ScalingConfig | None = None,
    run_config: ray_tune.RunConfig | None = None,
    resume: bool = False,
) -> TuneResult:
    """Distil the job's teachers into one student for each configuration of a space.

    Args:
        job: what trials have in common.
        space: by dotted path of the job, one of Tune's search spaces: `tune.uniform(1, 10)`.
        tune_config: Ray Tune's own: samples, searcher, scheduler; the metric is `eval/score`,
            the more the better, where it names none.
        scaling_config: workers of one trial, Ray Train's own; one worker if left out.
        run_config: name and folder of the sweep, Ray Tune's own; `runs/tune-<time>` if left out.
        resume: continue the stopped sweep in that folder.

    Returns:
        The trials, and where the best student is.

    Raises:
        ConfigError: a path, a value or a combination that can't be; no trial was started.
        DataError: the data isn't what the job declares.
        TeacherError: a teacher can't be loaded, or answers NaN.
        KeyboardInterrupt: it was stopped; `resume` continues it.
    """
    jobs, search = check_sweep(job, space, tune_config, scaling_config, run_config, resume=resume)
    # The trials are runs of W&B's, the sweep itself isn't.
    quiet = job.tracking.model_copy(update={"wandb": False, "tensorboard": False})
    place = RunConfig(name=search.name, storage_path=search.run_config.storage_path)
    job = job.model_copy(update={"tracking": quiet})
    with Run(job, "tune", search.scaling, place, resume=resume) as run:
        with run.stage("prepare"):
            jobs = replace(jobs, base=_common_job(jobs, run.folder.data))
            remember(run.folder, jobs.ranges, resume=resume)
            shared, passes = prepare_sweep(jobs, run.folder.data)
        run.start_ray()
        resources = default_teacher_resources()
        passes = [each.placed(resources) for each in passes]
        run.start(Precompute(passes[0], run).replicas(), together=False)
        labels = _compute_labels(passes, run)
        with run.stage("trials"):
            rows = search.run(shared, TrialMonitor(shared, search, run), resume=resume)
        result = _finish(run, jobs, search, rows, labels, passes[0])
    show(result, job.tracking)
    return result


def check_sweep(
    job: DistillJob,
    space: Mapping[str, Any],
    tune_config: ray_tune.TuneConfig | None = None,
    scaling_config: ScalingConfig | None = None,
    run_config: ray_tune.RunConfig | None = None,
    *,
    resume: bool = False,
) -> tuple[JobSpace, Search]:
    """Check what can be checked of a sweep before Ray starts; see `tune`.

    Returns:
        The jobs of its trials, and how Tune searches them.

    Raises:
        ConfigError: with every mistake that was found.
    """
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"tune: its report needs {', '.join(missing)}; pip install 'raybrew[tune]'"
        )
    search = Search(
        dict(space),
        with_defaults(tune_config),
        sweep_config(run_config, resume=resume),
        scaling_config or ScalingConfig(),
    )
    jobs = JobSpace(job, _ranges(search))
    jobs.check()
    scaling, scheduler = search.scaling, search.config.scheduler
    mistakes: list[str] = []
    with collect_mistakes(mistakes):
        check_metric(search.metric, jobs.job(jobs.first))
    with collect_mistakes(mistakes):
        check_labels(job)
    with collect_mistakes(mistakes):
        workers = {"num_workers": scaling.num_workers}
        check_arguments(ScalingConfig, "scaling", workers, SCALING)
    with collect_mistakes(mistakes):
        check_space(search.config, space)
    with collect_mistakes(mistakes):
        check_points(search.config, space, jobs)
    if copies_checkpoints(scheduler) and scaling.min_workers > 1:
        mistakes.append(
            "tune: population based training passes checkpoints from trial to trial, which needs "
            f"trials of one worker, got {scaling.min_workers} (scaling.num_workers)"
        )
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    if resume:
        check_is_sweep(run_folder(search.run_config, resume=True).path)
    check_tracking(job.tracking)
    read_baseline(job.tracking, job)
    return jobs, search


def sweep_config(given: ray_tune.RunConfig | None, *, resume: bool) -> ray_tune.RunConfig:
    """Return Ray Tune's RunConfig of a sweep with a name and an absolute path.

    Args:
        given: the user's, which isn't changed.
        resume: whether it is to name a sweep that was stopped.

    Raises:
        ConfigError: it names none, or its path can't be.
    """
    config = given or ray_tune.RunConfig(storage_path="runs")
    name = config.name if resume else config.name or f"tune-{datetime.now():%Y%m%d-%H%M%S}"
    # Tune takes a path as it is, and has working directories of its own.
    storage = run_folder(replace(config, name=name), resume=resume).path.parent
    return replace(config, name=name, storage_path=str(storage))


def check_is_sweep(folder: Path) -> None:
    """Refuse to resume the folder of a run that is no sweep.

    Raises:
        ConfigError: it has a job and no space.
    """
    if (folder / "job.yaml").exists() and not (folder / SPACE).exists():
        raise ConfigError(
            f"run.name: expected a sweep to resume in {folder}, got a run without {SPACE}, which "
            "no sweep began; name the sweep that was stopped (run.name, run.storage_path)"
        )


def remember(folder: RunFolder, ranges: Mapping[str, Range], *, resume: bool) -> None:
    """Write the space of a sweep into its folder.

    Raises:
        ConfigError: it is resumed, and began with another space, or with one that can't be read.
    """
    now = {path: each.text for path, each in ranges.items()}
    file = folder.path / SPACE
    if resume and file.exists() and _read(file) != now:
        raise ConfigError(
            f"resume: {file} shows that the sweep began with another space; resume it with that, "
            "or start a new sweep under another run.name"
        )
    folder.write_json(SPACE, now)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"resume: expected the space of the sweep in {file}, got a file that can't be read "
            f"({error}); start a new sweep under another run.name"
        ) from error


def _ranges(search: Search) -> dict[str, Range]:
    ranges = mutated_ranges(search.config.scheduler)
    for path, given in search.domains.items():
        # A path that trials begin with may change while they run.
        begun, then = range_of(path, given), ranges.get(path)
        ranges[path] = begun if then is None else begun.joined(then)
    return ranges


def _common_job(jobs: JobSpace, folder: Path) -> DistillJob:
    job = with_saved_data(jobs.base, folder / "rows")
    if job.labels.top_k is None:
        return job
    # One set of labels serves every temperature.
    temperatures = sorted({*job.labels.top_k_temperatures, *jobs.temperatures})
    labels = job.labels.model_copy(update={"top_k_temperatures": tuple(temperatures)})
    return job.model_copy(update={"labels": labels})


def _compute_labels(passes: list[ResolvedJob], run: Run) -> dict[str, float]:
    """Compute every label that a trial may need, then release the teachers."""
    counts = {"needed": 0.0, "in_store": 0.0, "forwards": 0.0}
    for job in passes:
        labels = Precompute(job, run)
        with labels.pool() as pool:
            labels.fill(pool, ("train", "eval"))
            labels.close(pool)
        if labels.dropped:
            raise TeacherError(
                f"sweep: expected the labels of every teacher, but {', '.join(labels.dropped)} "
                "was dropped (on_loss: drop); start the sweep again, or leave that teacher out"
            )
        check_class_orders(job, World(), None)
        for name in counts:
            counts[name] += labels.counts[name]
    return counts


def _finish(
    run: Run,
    jobs: JobSpace,
    search: Search,
    rows: list[TrialRow],
    labels: dict[str, float],
    resolved: ResolvedJob,
) -> TuneResult:
    teachers, ensembles = evaluate_teachers(resolved)
    best = best_of(rows, search.mode)
    folder = run.folder
    student = best_job = ""
    if best is not None:
        if best.checkpoint:
            folder.export_student(Path(best.checkpoint) / STUDENT)
            student = str(folder.student)
        plain = absolute_plain(jobs.job(best.config))
        folder.write("best.yaml", dump_yaml(plain | scaling_section(search.scaling)))
        best_job = str(folder.path / "best.yaml")
    for count in ("hits", "misses"):
        labels[count] = sum(row.metrics.get(f"labels/{count}", 0.0) for row in rows)
    result = TuneResult(
        folder=str(folder.path),
        best=best,
        best_job=best_job,
        student=student,
        trials=tuple(ranked(rows, search.mode)),
        labels=labels,
        teachers=teachers,
        ensembles=ensembles,
        times=run.times,
        metric=search.metric,
    )
    folder.write("results.csv", results_csv(rows, search.metric, search.mode))
    run.tracker.summary({search.metric: None if best is None else best.score})
    with run.stage("report"):
        _report(result, jobs, search, run, _lines(result, resolved, search.metric))
    run.times["total"] = run.seconds
    folder.write_json("report.json", asdict(result))
    folder.write("report.txt", str(result))
    return result


def _lines(result: TuneResult, job: ResolvedJob, metric: str) -> dict[str, float]:
    """Return scores of teachers, their mixture and the baseline, where they are the sweep's."""
    task, *others = job.tasks
    if others and not metric.startswith(f"eval/{task.name}/"):
        return {}  # a mean over tasks, which teachers don't have
    name = metric.rpartition("/")[2]
    name = task.kind.main_metric(task.label_names) if metric == "eval/score" else name
    found = {f"teacher {who}": each for who, each in result.teachers.items()}
    if len(task.teachers) > 1 and task.name in result.ensembles:
        found["teachers, mixed"] = result.ensembles[task.name]
    baseline = read_baseline(job.config.tracking, job.config)
    if task.name in baseline:
        found["baseline"] = baseline[task.name]
    return {who: each[name] for who, each in found.items() if name in each}


def _report(
    result: TuneResult, jobs: JobSpace, search: Search, run: Run, lines: Mapping[str, float]
) -> None:
    # Slow to import, and needed only here.
    from raybrew.sweeps.charts import draw, render_page, study_of

    study = study_of(result.trials, jobs.ranges, search.mode)
    charts = draw(study, result.trials, search.metric, run.folder.path, lines)
    values = values_of(jobs.base)
    base = {path: get_path(values, path) for path in jobs.ranges}
    page = render_page(result, charts, jobs.ranges, base, metric=search.metric, mode=search.mode)
    run.folder.write(PAGE, page)
