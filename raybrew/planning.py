"""From a prepared job to what each rank is to do, as values."""

from raybrew.config import DistillationConfig, DistillJob, TrainJob
from raybrew.labels.spec import StoreSpec
from raybrew.preparation import Preparation, PreparedTask
from raybrew.student.building import RankPlan, TaskPlan, TeacherPlan

__all__ = ["distill_plan", "supervised_plan"]


def distill_plan(job: DistillJob, preparation: Preparation) -> RankPlan:
    """Return what each rank of a distillation is to do."""
    return RankPlan(
        tasks=tuple(_task(t, job.objective_of(t.task.name)) for t in preparation.tasks),
        teachers=tuple(
            TeacherPlan(
                name=teacher.teacher.name,
                task=teacher.task,
                weight=teacher.teacher.weight,
                fingerprint=teacher.fingerprint,
                view=teacher.view,
                signals=teacher.signals,
                order=teacher.order,
                hosted=teacher.spec if teacher.teacher.placement == "worker" else None,
                supplied=teacher.spec is None,
            )
            for teacher in preparation.teachers
        ),
        student=job.student,
        hosts=job.hosts(),
        training=job.training,
        mixing=job.mixing,
        tracking=job.tracking,
        store=StoreSpec.of(job.labels),
        matches=preparation.matches,
        window=job.labels.window,
        max_windows=job.labels.max_windows,
        labels_ahead=job.labels.when == "ahead",
    )


def supervised_plan(job: TrainJob, preparation: Preparation) -> RankPlan:
    """Return what each rank of a training without teachers is to do."""
    return RankPlan(
        tasks=tuple(_task(task, None) for task in preparation.tasks),
        teachers=(),
        student=job.model,
        hosts={},
        training=job.training,
        mixing=job.mixing,
        tracking=job.tracking,
        store="",
    )


def _task(prepared: PreparedTask, distillation: DistillationConfig | None) -> TaskPlan:
    task = prepared.task
    return TaskPlan(
        name=task.name,
        kind=task.kind,
        label_names=prepared.label_names,
        train=prepared.folders["train"],
        eval=prepared.folders.get("eval"),
        adaptor=task.adaptor,
        weight=task.weight,
        batch_size=task.batch_size,
        distillation=distillation,
        rounds=task.rounds,
    )
