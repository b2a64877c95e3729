"""From a prepared job to what each rank is to do, as values."""

from collections.abc import Collection
from pathlib import Path

from raybrew.config import DistillationConfig, DistillJob, Student, TrainJob
from raybrew.kinds import kind_of
from raybrew.labels.spec import StoreSpec
from raybrew.preparation import Preparation, PreparedTask
from raybrew.student.building import RankPlan, TaskPlan, TeacherPlan

__all__ = ["distill_plan", "supervised_plan"]


def distill_plan(job: DistillJob, preparation: Preparation) -> RankPlan:
    """Return what each rank of a distillation is to do."""
    hosts = job.hosts()
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
                unnamed=teacher.unnamed,
            )
            for teacher in preparation.teachers
        ),
        student=_student(job.student, hosts),
        hosts={n: t.model_copy(update={"model": _folder(t.model)}) for n, t in hosts.items()},
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
        student=_student(job.model, ()),
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
        num_classes=None if kind_of(task.kind).has_labels else prepared.num_labels,
    )


def _student(student: Student, teachers: Collection[str]) -> Student:
    layers = student.layers_from
    folders = {
        "model": _folder(student.model),
        "tokenizer_from": _folder(student.tokenizer_from, teachers),
        "layers_from": None if layers is None else (_folder(layers[0], teachers), layers[1]),
    }
    return student.model_copy(update=folders)


def _folder(path: str | None, names: Collection[str] = ()) -> str | None:
    # Ranks have a working directory of their own: relative paths are the driver's.
    if path is None or path in names or not Path(path).expanduser().is_dir():
        return path
    return str(Path(path).expanduser().absolute())
