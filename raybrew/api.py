"""The functions that a driver script calls: `distill`, `train` and `label`.

prepare ──► Ray, resources checked ──► teachers ──► [labels ahead] ──► Ray Train ──► student
│                                                                       │
└─ errors before any model is loaded                   teachers judged ─┴─► report
"""

from dataclasses import asdict
from functools import partial

from ray.train import Result, RunConfig, ScalingConfig

from raybrew.config import DistillJob, TrainJob
from raybrew.errors import LabelsLost
from raybrew.evaluation.stored_teachers import evaluate_teachers
from raybrew.runs import resolve as prepare
from raybrew.runs.cluster import default_teacher_resources
from raybrew.runs.precompute import LabelResult, Precompute
from raybrew.runs.report import render_labels
from raybrew.runs.resolve import distill_plan, prepare_supervised, supervised_plan
from raybrew.runs.run import Run, RunResult


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
        resume: go on with the run in that folder, after a stop of any kind.

    Returns:
        Where the student is, and what it is worth.

    Raises:
        ConfigError: the job can't be; nothing was loaded yet.
        DataError: the data isn't what the job says.
        TeacherError: a teacher can't be loaded, is gone, or answers NaN.
    """
    with Run(job, "distill", scaling_config, run_config, resume) as run:
        with run.stage("prepare"):
            preparation = prepare(job, run.folder.data)
        run.start_ray()
        preparation = preparation.placed(default_teacher_resources())
        labelling = Precompute(job, preparation, run, in_workers=True)
        run.start(labelling.replicas(), together=job.labels.when == "along")
        fitted = None
        while fitted is None:
            try:
                fitted = _fit(job, labelling, run)
            except LabelsLost as lost:
                labelling.lost(lost)
        labelling.note_workers(fitted.return_value or {})
        teachers, ensembles = evaluate_teachers(job, labelling.kept())
        return run.finish(fitted, teachers, ensembles, labelling.counts, preparation.data_counts())


def _fit(job: DistillJob, labelling: Precompute, run: Run) -> Result:
    """Train, from the newest checkpoint if there is one, with teachers if labels are missing.

    Raises:
        LabelsLost: labels that were there before training are gone.
    """
    ahead = job.labels.when == "ahead"
    with labelling.pool() as pool:
        if ahead:
            labelling.fill(pool, ("train", "eval"))
            labelling.close(pool)
        plan = distill_plan(job, labelling.kept())
        if pool is None or ahead:
            fitted = run.fit(plan, None)
        else:
            with labelling.releasing(pool):
                fitted = run.fit(plan, pool.address, on_report=partial(labelling.watch, pool))
            labelling.fill(pool, ("eval",))
            labelling.close(pool)
    # Of what is gone since, nobody has missed these yet.
    labelling.restore("eval")
    return fitted


def label(job: DistillJob, *, run_config: RunConfig | None = None) -> LabelResult:
    """Fill the store with every label that distilling the job needs; then free the teachers.

    What is there already is not computed again: a second call goes on where one was stopped.

    Args:
        job: what to label; its student and objective say what is needed of the teachers.
        run_config: name and folder of the run; `runs/label-<time>` if left out.

    Returns:
        Counts and figures of the teachers.

    Raises:
        RaybrewError: as `distill`.
    """
    with Run(job, "label", None, run_config) as run:
        with run.stage("prepare"):
            preparation = prepare(job, run.folder.data)
        run.start_ray()
        labelling = Precompute(job, preparation.placed(default_teacher_resources()), run)
        run.start(labelling.replicas(), together=False)
        with labelling.pool() as pool:
            labelling.fill(pool, ("train", "eval"))
            labelling.close(pool)
        result = LabelResult(
            folder=str(run.folder.path),
            store=job.labels.store,
            labels=labelling.counts,
            teachers=labelling.teachers,
            times=run.times,
        )
        run.folder.write_json("report.json", asdict(result))
        run.folder.write("report.txt", render_labels(asdict(result)))
        return result


def train(
    job: TrainJob,
    *,
    scaling_config: ScalingConfig | None = None,
    run_config: RunConfig | None = None,
    resume: bool = False,
) -> RunResult:
    """Train one model on labels alone: how teachers are made. See `distill`."""
    with Run(job, "train", scaling_config, run_config, resume) as run:
        with run.stage("prepare"):
            preparation = prepare_supervised(job, run.folder.data)
        run.start_ray()
        run.start([], together=True)
        plan = supervised_plan(job, preparation)
        return run.finish(run.fit(plan, None), {}, {}, {}, preparation.data_counts())
