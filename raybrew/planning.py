"""From a prepared job to what each rank is to do, as values."""

from raybrew.config import DistillJob, TrainJob
from raybrew.labels.spec import StoreSpec
from raybrew.preparation import Preparation
from raybrew.student.building import RankPlan, TaskPlan, TeacherPlan

__all__ = ["distill_plan", "supervised_plan"]


def distill_plan(job: DistillJob, preparation: Preparation) -> RankPlan:
    """Return what each rank of a distillation is to do."""
    return RankPlan(
        tasks=_task_plans(preparation),
        teachers=tuple(
            TeacherPlan(
                name=teacher.teacher.name,
                task=teacher.task,
                weight=teacher.teacher.weight,
                fingerprint=teacher.spec.fingerprint,
                view=teacher.view,
                signals=teacher.signals,
                order=teacher.order,
                hosted=teacher.spec if teacher.teacher.placement == "worker" else None,
            )
            for teacher in preparation.teachers
        ),
        student=job.student,
        hosts={teacher.name: teacher for teacher in job.teachers},
        distillation=job.distillation,
        training=job.training,
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
        tasks=_task_plans(preparation),
        teachers=(),
        student=job.model,
        hosts={},
        distillation=None,
        training=job.training,
        tracking=job.tracking,
        store="",
    )


def _task_plans(preparation: Preparation) -> tuple[TaskPlan, ...]:
    return tuple(
        TaskPlan(
            name=task.task.name,
            kind=task.task.kind,
            label_names=task.label_names,
            train=task.folders["train"],
            eval=task.folders.get("eval"),
            adaptor=task.task.adaptor,
            rounds=task.task.rounds,
        )
        for task in preparation.tasks
    )
