"""`tune`: one student for each configuration of a space; each label is computed once."""

import json
import math
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
from raybrew.errors import ConfigError, TeacherError
from raybrew.evaluation.stored_teachers import Metrics, evaluate_teachers
from raybrew.runs.cluster import default_teacher_resources, run_folder
from raybrew.runs.folder import RunFolder
from raybrew.runs.precompute import Precompute
from raybrew.runs.ray_config import check_ray_arguments
from raybrew.runs.run import Run
from raybrew.runs.tracking import check_tracking
from raybrew.sweeps.prepare import PreparedSweep, survey, with_saved_data
from raybrew.sweeps.results import TrialRow, TuneResult, best_of, ranked, render_sweep, results_csv
from raybrew.sweeps.search import TRIALS, Search, TrialMonitor
from raybrew.sweeps.settings import (
    check_labels,
    check_metric,
    check_points,
    check_space,
    copies_checkpoints,
    mutated_ranges,
    points_of,
    scaling_section,
    with_defaults,
)
from raybrew.sweeps.space import JobSpace, Range, range_of
from raybrew.training.build import check_class_orders
from raybrew.training.snapshot import STUDENT
from raybrew.training.world import World

# What a sweep is over, noted in its folder, so that it goes on with the same space alone.

SPACE = "space.json"


def check_is_sweep(folder: Path) -> None:
    """Refuse to go on in the folder of a run that is no sweep.

    Raises:
        ConfigError: it began, and without a space.
    """
    if (folder / "job.yaml").exists() and not (folder / SPACE).exists():
        raise ConfigError(
            f"run.name: expected a sweep to resume in {folder}, got a run without {SPACE}, which "
            "no sweep began; name the sweep that was stopped (run.name, run.storage_path)"
        )


def remember(folder: RunFolder, ranges: Mapping[str, Range], *, resume: bool) -> None:
    """Write down what the sweep is over.

    Raises:
        ConfigError: it goes on, and began with another space, or with one that can't be read.
    """
    now = {path: each.said for path, each in ranges.items()}
    file = folder.path / SPACE
    if resume and file.exists() and _read(file) != now:
        raise ConfigError(
            f"resume: {file} says that the sweep began with another space; go on with that, or "
            "start a new sweep under another run.name"
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


# `tune`: many students of the same teachers, which are asked once.
#
# check the space ──► Ray ──► survey, encode ──► labels of all trials ──► teachers released
#     ──► trials ──► table, report, best student, best job

_NEEDED = ("optuna", "matplotlib", "jinja2")


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
        resume: go on with the stopped sweep in that folder.

    Returns:
        The trials, and where the best student is.

    Raises:
        ConfigError: a path, a value or a combination that can't be; no trial was started.
        DataError: the data isn't what the job says.
        TeacherError: a teacher can't be loaded, or answers NaN.
        KeyboardInterrupt: it was stopped; `resume` goes on.
    """
    return _Sweep(job, space, tune_config, scaling_config, run_config, resume).run()


class _Sweep:
    def __init__(
        self,
        job: DistillJob,
        space: Mapping[str, Any],
        tune_config: ray_tune.TuneConfig | None,
        scaling: ScalingConfig | None,
        run_config: ray_tune.RunConfig | None,
        resume: bool,
    ):
        self._job, self._given, self._resume = job, dict(space), resume
        self._config = with_defaults(tune_config)
        self._scaling = scaling or ScalingConfig()
        self._run_config = sweep_config(run_config, resume=resume)
        self._ranges: dict[str, Range] = mutated_ranges(self._config.scheduler)
        for path, given in space.items():
            # A path that trials begin with may change while they run.
            begun, then = range_of(path, given), self._ranges.get(path)
            self._ranges[path] = begun if then is None else begun.joined(then)

    def run(self) -> TuneResult:
        self._check()
        name = str(self._run_config.name)
        # The sweep itself is no run of W&B's: its trials are.
        quiet = self._job.tracking.model_copy(update={"wandb": False, "tensorboard": False})
        place = RunConfig(name=name, storage_path=self._run_config.storage_path)
        job = self._job.model_copy(update={"tracking": quiet})
        with Run(job, "tune", self._scaling, place, resume=self._resume) as run:
            with run.stage("prepare"):
                space = JobSpace(self._base(run.folder.data), self._ranges)
                remember(run.folder, self._ranges, resume=self._resume)
                found = survey(space, run.folder.data)
            run.start_ray()
            default = default_teacher_resources()
            first = Precompute(found.passes[0].placed(default), run)
            run.start(first.replicas(), together=False)
            labels = _label(found, run, default)
            with run.stage("trials"):
                rows = self._search(found, run)
            judged = evaluate_teachers(found.passes[0])
            return self._finish(run, space, rows, labels, judged)

    def _check(self) -> None:
        missing = [package for package in _NEEDED if find_spec(package) is None]
        if missing:
            raise ConfigError(
                f"tune: its report needs {', '.join(missing)}; pip install 'raybrew[tune]'"
            )
        space = JobSpace(self._job, self._ranges)
        space.check()
        check_metric(self._metric, space.job(space.first))
        check_labels(self._job)
        check_ray_arguments("scaling", {"num_workers": self._scaling.num_workers})
        check_space(self._config, self._given)
        check_points(*points_of(self._config, self._given), self._given, space)
        if self._resume:
            check_is_sweep(run_folder(self._run_config, resume=True).path)
        if copies_checkpoints(self._config.scheduler) and self._scaling.min_workers > 1:
            raise ConfigError(
                "tune: population based training hands checkpoints from trial to trial, which "
                f"needs trials of one worker, got {self._scaling.min_workers} "
                "(scaling.num_workers)"
            )
        check_tracking(self._job.tracking)

    def _base(self, folder: Path) -> DistillJob:
        job = with_saved_data(self._job, folder / "rows")
        if job.labels.top_k is None:
            return job
        # One set of labels serves every temperature.
        listed = JobSpace(job, self._ranges).temperatures
        temperatures = tuple(sorted({*job.labels.top_k_temperatures, *listed}))
        labels = job.labels.model_copy(update={"top_k_temperatures": temperatures})
        return job.model_copy(update={"labels": labels})

    def _search(self, found: PreparedSweep, run: Run) -> list[TrialRow]:
        search = Search(
            found.brief,
            self._given,
            self._config,
            self._run_config,
            self._scaling,
            run.folder.path,
        )
        follower = TrialMonitor(
            found.brief.space,
            run.folder.path / TRIALS,
            str(self._run_config.name),
            run.bars,
            run.events,
            self._metric,
            self._mode,
            self._num_trials,
        )
        return search.run(follower, resume=self._resume)

    @property
    def _metric(self) -> str:
        return str(self._config.metric)

    @property
    def _mode(self) -> str:
        return str(self._config.mode)

    @property
    def _num_trials(self) -> int | None:
        grids = [
            len(given["grid_search"])
            for given in self._given.values()
            if isinstance(given, Mapping) and "grid_search" in given
        ]
        samples = self._config.num_samples
        if getattr(self._config.search_alg, "_points_to_evaluate", None):
            # Points that the user gives stand for as many of the grid's as agree with them.
            return None
        return None if samples < 0 else samples * math.prod(grids)

    def _finish(
        self,
        run: Run,
        space: JobSpace,
        rows: list[TrialRow],
        labels: dict[str, float],
        judged: tuple[Metrics, Metrics],
    ) -> TuneResult:
        order = ranked(rows, self._mode)
        best = best_of(rows, self._mode)
        folder = run.folder
        student = best_job = ""
        if best is not None:
            if best.checkpoint:
                folder.export_student(Path(best.checkpoint) / STUDENT)
                student = str(folder.student)
            plain = absolute_plain(space.job(best.config))
            folder.write("best.yaml", dump_yaml(plain | scaling_section(self._scaling)))
            best_job = str(folder.path / "best.yaml")
        for count in ("hits", "misses"):
            labels[count] = sum(row.metrics.get(f"labels/{count}", 0.0) for row in rows)
        folder.write("results.csv", results_csv(rows, self._metric, self._mode))
        with run.stage("report"):
            self._report(run, space, order, best, labels)
        run.times["total"] = run.seconds
        result = TuneResult(
            folder=str(folder.path),
            best=best,
            best_job=best_job,
            student=student,
            trials=tuple(order),
            labels=labels,
            teachers=judged[0],
            ensembles=judged[1],
            times=run.times,
        )
        folder.write_json("report.json", asdict(result))
        folder.write("report.txt", render_sweep(result, self._metric))
        return result

    def _report(
        self,
        run: Run,
        space: JobSpace,
        order: list[TrialRow],
        best: TrialRow | None,
        labels: dict[str, float],
    ) -> None:
        # Drawing is slow to import, and needed here alone.
        from raybrew.sweeps.charts import ReportFacts, draw, importances, render_page, study_of

        study = study_of(order, space.ranges, self._mode)
        importance = importances(study)
        pictures = draw(study, importance, order, self._metric, run.folder.path)
        values = values_of(space.base)
        facts = ReportFacts(
            name=str(self._run_config.name),
            metric=self._metric,
            mode=self._mode,
            rows=order,
            best=best,
            said={path: each.said for path, each in space.ranges.items()},
            base={path: get_path(values, path) for path in space.ranges},
            labels=labels,
            times=run.times,
            importance=importance,
            command=f"raybrew distill {run.folder.path / 'best.yaml'}",
        )
        run.folder.write("report.html", render_page(facts, pictures))


def _label(found: PreparedSweep, run: Run, default: Mapping[str, float]) -> dict[str, float]:
    """Compute every label that a trial may ask for, then let the teachers go."""
    counts = {"needed": 0.0, "in_store": 0.0, "forwards": 0.0}
    for each in found.passes:
        precompute = Precompute(each.placed(default), run)
        with precompute.pool() as pool:
            precompute.fill(pool, ("train", "eval"))
            precompute.close(pool)
        if precompute.dropped:
            raise TeacherError(
                f"sweep: expected the labels of every teacher, got {', '.join(precompute.dropped)} "
                "gone for good (on_loss: drop); start the sweep again, or leave that teacher out"
            )
        check_class_orders(each, World(), None)
        for name in counts:
            counts[name] += precompute.counts[name]
    return counts


def sweep_config(given: ray_tune.RunConfig | None, *, resume: bool) -> ray_tune.RunConfig:
    """Return Ray Tune's RunConfig of a sweep with a name and an absolute path.

    Args:
        given: the user's, which stays as it is.
        resume: whether it is to name a sweep that was stopped.

    Raises:
        ConfigError: it names none, or its path can't be.
    """
    config = given or ray_tune.RunConfig(storage_path="runs")
    name = config.name if resume else config.name or f"tune-{datetime.now():%Y%m%d-%H%M%S}"
    # Tune takes a path as it is, and has working directories of its own.
    storage = run_folder(replace(config, name=name), resume=resume).path.parent
    return replace(config, name=name, storage_path=str(storage))
