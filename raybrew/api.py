"""The functions that a driver script calls: `distill`, `train` and `label`.

resolve ──► Ray, resources checked ──► teachers ──► [labels ahead] ──► Ray Train ──► student
│                                                                       │
└─ errors before any model is loaded                teachers evaluated ─┴─► report
"""

from functools import partial
from typing import Any

from ray.train import Result, RunConfig, ScalingConfig

from raybrew.config import DistillJob, TrainJob
from raybrew.config.paths import check_paths
from raybrew.errors import ConfigError, LabelsLost
from raybrew.evaluation.stored_teachers import evaluate_teachers
from raybrew.runs.precompute import Precompute
from raybrew.runs.report import LabelResult, RunResult, show
from raybrew.runs.run import Run


def distill(
    job: DistillJob,
    *,
    scaling_config: ScalingConfig | None = None,
    run_config: RunConfig | None = None,
    resume: bool = False,
) -> RunResult:
    """Distil the job's teachers into its student.

    Args:
        job: what to do.
        scaling_config: the student's workers, Ray Train's own; one worker if left out.
        run_config: name and folder of the run, Ray Train's own; `runs/<job>-<time>` if left out.
        resume: continue the run in that folder, however it was stopped; of one that is finished,
            return its results.

    Returns:
        Where the student is, and its metrics.

    Raises:
        ConfigError: the job is invalid; nothing was loaded yet.
        DataError: the data isn't what the job says.
        TeacherError: a teacher can't be loaded, is lost, or answers NaN.
    """
    _check(job, DistillJob, "distill")
    with Run(job, "distill", scaling_config, run_config, resume) as run:
        if done := run.result():
            return done
        resolved = run.resolve()
        labels = Precompute(resolved, run, in_workers=True)
        run.start(labels.replicas(), together=job.labels.when == "along")
        fitted = None
        while fitted is None:
            try:
                fitted = _fit(labels, run, ahead=job.labels.when == "ahead")
            except LabelsLost as lost:
                labels.start_again(lost)
        labels.count_workers(fitted.return_value or {})
        evaluated = evaluate_teachers(labels.job)
        result = run.finish(fitted, labels.job, labels.counts, evaluated)
    show(result, job.tracking)
    return result


def _fit(labels: Precompute, run: Run, *, ahead: bool) -> Result:
    """Train, from the newest checkpoint if there is one, with teachers if labels are missing.

    Raises:
        LabelsLost: labels that were there before training were deleted.
    """
    with labels.pool() as pool:
        if ahead:
            labels.fill(pool, ("train", "eval"))
            labels.close(pool)
        if pool is None or ahead:
            fitted = run.fit(labels.job)
        else:
            with labels.releasing(pool):
                record = partial(labels.try_record, pool)
                fitted = run.fit(labels.job, pool.address, on_report=record)
            labels.fill(pool, ("eval",))
            labels.close(pool)
    # No step reads these: what was deleted of them meanwhile shows only now.
    labels.restore("eval")
    return fitted


def label(job: DistillJob, *, run_config: RunConfig | None = None) -> LabelResult:
    """Fill the store with every label that distilling the job needs; then free the teachers.

    Labels in the store are not computed again: a second call continues where the first stopped.

    Args:
        job: what to label; its student and objective say what is needed of the teachers.
        run_config: name and folder of the run; `runs/label-<time>` if left out.

    Returns:
        Counts of labels and metrics of the teachers.

    Raises:
        RaybrewError: as `distill`.
    """
    _check(job, DistillJob, "label")
    with Run(job, "label", None, run_config) as run:
        labels = Precompute(run.resolve(), run)
        run.start(labels.replicas(), together=False)
        with labels.pool() as pool:
            labels.fill(pool, ("train", "eval"))
            labels.close(pool)
        scores, ensembles = evaluate_teachers(labels.job)
        result = LabelResult(
            folder=str(run.folder.path),
            store=job.labels.store,
            labels=labels.counts,
            teachers=labels.teachers,
            times=run.times,
            scores=scores,
            ensembles=ensembles,
        )
        run.write_report(result, labels.job)
    show(result, job.tracking)
    return result


def train(
    job: TrainJob,
    *,
    scaling_config: ScalingConfig | None = None,
    run_config: RunConfig | None = None,
    resume: bool = False,
) -> RunResult:
    """Train one model on labels alone: how teachers are made. See `distill`."""
    _check(job, TrainJob, "train")
    with Run(job, "train", scaling_config, run_config, resume) as run:
        if done := run.result():
            return done
        resolved = run.resolve()
        run.start([], together=True)
        result = run.finish(run.fit(resolved), resolved)
    show(result, job.tracking)
    return result


def _check(job: Any, kind: type[DistillJob] | type[TrainJob], what: str) -> None:
    """Refuse a job of another kind, and files that aren't there."""
    if not isinstance(job, kind):
        other = "train" if isinstance(job, TrainJob) else "distill"
        hint = f"; rb.{other} takes it" if isinstance(job, (DistillJob, TrainJob)) else ""
        raise ConfigError(f"{what}: expected a {kind.__name__}, got a {type(job).__name__}{hint}")
    check_paths(job)
