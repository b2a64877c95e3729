"""What the driver does: `distill` and `train`, from a job to a student's folder.

prepare ──► Ray, resources checked ──► teachers ──► [labels ahead] ──► Ray Train ──► student
│                                                                       │
└─ errors before any model is loaded                   teachers judged ─┴─► report
"""

from ray.train import RunConfig, ScalingConfig

from raybrew.config import DistillJob, TrainJob
from raybrew.judging import judge_teachers
from raybrew.labelling import Labelling
from raybrew.planning import distill_plan, supervised_plan
from raybrew.preparation import prepare, prepare_supervised
from raybrew.run import Run, RunResult

__all__ = ["RunResult", "distill", "train"]


def distill(
    job: DistillJob,
    *,
    scaling_config: ScalingConfig | None = None,
    run_config: RunConfig | None = None,
) -> RunResult:
    """Distil the job's teachers into its student.

    Args:
        job: what to do.
        scaling_config: the student's workers, Ray Train's own; one worker if left out.
        run_config: name and folder of the run, Ray Train's own; `runs/<job>-<time>` if left out.

    Returns:
        Where the student is, and what it is worth.

    Raises:
        ConfigError: the job can't be; nothing was loaded yet.
        DataError: the data isn't what the job says.
        TeacherError: a teacher can't be loaded, is gone, or answers NaN.
    """
    with Run(job, "distill", scaling_config, run_config) as run:
        with run.stage("prepare"):
            preparation = prepare(job, run.folder.data)
        run.start(
            [
                (teacher.teacher.name, teacher.teacher.resources)
                for teacher in preparation.teachers
                for _ in range(teacher.teacher.replicas)
            ],
            together=job.labels.when == "along",
        )
        labelling = Labelling(job, preparation, run)
        with labelling.pool() as pool:
            ahead = job.labels.when == "ahead"
            if ahead:
                labelling.fill(pool, ("train", "eval"))
                labelling.close(pool)
            plan = distill_plan(job, preparation)
            fitted = run.fit(plan, None if pool is None or ahead else pool.address)
            if not ahead:
                labelling.fill(pool, ("eval",))
                labelling.close(pool)
        teachers, ensembles = judge_teachers(job, preparation)
        return run.finish(fitted, teachers, ensembles, labelling.counts)


def train(
    job: TrainJob,
    *,
    scaling_config: ScalingConfig | None = None,
    run_config: RunConfig | None = None,
) -> RunResult:
    """Train one model on labels alone: how teachers are made. See `distill`."""
    with Run(job, "train", scaling_config, run_config) as run:
        with run.stage("prepare"):
            preparation = prepare_supervised(job, run.folder.data)
        run.start([], together=True)
        plan = supervised_plan(job, preparation)
        return run.finish(run.fit(plan, None), {}, {}, {})
