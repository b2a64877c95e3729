"""The order of things: read, check, plan, encode."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raybrew.config import DistillJob, Task, Teacher, TrainJob
from raybrew.data.mixing import check_mixing
from raybrew.data.padding import Padding
from raybrew.data.split import STUDENT_VIEW
from raybrew.data.supplied import column_fingerprint
from raybrew.errors import DataError
from raybrew.kinds import kind_of
from raybrew.labels.payload import Signal
from raybrew.labels.usable import check_store
from raybrew.matching.plan import TaskMatch
from raybrew.matching.reader import needs_attention
from raybrew.matching.signals import code_name
from raybrew.models.adaptors import adaptor_of
from raybrew.models.padding import padding_of
from raybrew.objective import Objective
from raybrew.preparation.checks import (
    TeacherModel,
    assumed_order,
    check_augmentation,
    check_columns,
    check_droppable,
    check_labels,
    check_mask,
    check_student,
    check_teacher,
    is_unnamed,
    order_of,
)
from raybrew.preparation.matches import check_architectures, task_matches
from raybrew.preparation.names import check_adaptor_paths, check_objective_names
from raybrew.preparation.prepared import Fitting, Preparation, PreparedTeacher
from raybrew.preparation.readings import Readings
from raybrew.preparation.supplying import store_supplied
from raybrew.preparation.tables import Table, encode_table, read_table
from raybrew.student.extensions import check_extensions
from raybrew.student.module import check_projections
from raybrew.student.optimization import check_optimization, optimizer_class
from raybrew.teachers.teacher import TeacherSpec

logger = logging.getLogger(__name__)

__all__ = ["fit_together", "prepare", "prepare_supervised", "read_tables"]


def prepare(job: DistillJob, folder: Path) -> Preparation:
    """Read, check and encode all that a distillation needs.

    Args:
        job: what to do.
        folder: where the encoded splits are saved.

    Raises:
        ConfigError: models that don't fit each other, the data or the objective.
        DataError: data that isn't what its task says.
    """
    tables = read_tables(job)
    fitting = fit_together(job, tables, Readings())
    for teacher in fitting.teachers:
        table = tables[teacher.task]
        if teacher.unnamed and table.order_assumed:
            logger.warning(assumed_order(f"teachers[{teacher.teacher.name}].model", table))
    encoded = tuple(
        encode_table(table, tokenizers, folder, num_labels)
        for table, tokenizers, num_labels in zip(
            tables, fitting.tokenizers, fitting.num_labels, strict=True
        )
    )
    store_supplied(job, tables, fitting.teachers)
    return Preparation(encoded, fitting.teachers, fitting.matches)


def prepare_supervised(job: TrainJob, folder: Path) -> Preparation:
    """Read, check and encode all that supervised training needs; see `prepare`."""
    check_optimization(job.training)
    for task in job.tasks:
        check_augmentation(task)
    check_extensions(job.training)
    check_adaptor_paths(job)
    check_mixing(job.mixing, [task.name for task in job.tasks])
    for task in job.tasks:
        kind_of(task.kind, job.model.architecture, "model.architecture")
    tables = [read_table(task) for task in job.tasks]
    for table in tables:
        if not table.kind.num_labelled(table.train):
            raise DataError(
                f"tasks[{table.task.name}].train: expected labels to learn from in "
                f"{table.task.label!r}, got none in {len(table.train)} rows"
            )
    _, tokenizer = check_student(job.model, tables, {}, what="model")
    for task in job.tasks:
        check_mask(task, {STUDENT_VIEW: tokenizer})
    return Preparation(
        tuple(
            encode_table(
                table,
                {STUDENT_VIEW: tokenizer},
                folder,
                table.kind.num_labels(table.label_names, tokenizer),
            )
            for table in tables
        )
    )


def read_tables(job: DistillJob) -> list[Table]:
    """Read the data of a job whose names are known to exist.

    Raises:
        ConfigError: a loss, a mixture, an optimizer or an option that doesn't exist, or a store
            that can't be used.
        DataError: data that isn't what its task says.
    """
    check_names(job)
    check_store(job.labels)
    return [read_table(task, job.teachers_of(task.name)) for task in job.tasks]


def check_names(job: DistillJob) -> None:
    """Refuse names and options that don't exist, before anything is read."""
    for task in job.tasks:
        check_augmentation(task)
        check_columns(task, job.teachers_of(task.name))
        check_objective_names(job, task)
        _objective(job, task, _logits_signal(job, task.name, None))
    check_adaptor_paths(job)
    check_architectures(job)
    check_optimization(job.training)
    check_extensions(job.training)
    check_mixing(job.mixing, [task.name for task in job.tasks])


def fit_together(job: DistillJob, tables: Sequence[Table], readings: Readings) -> Fitting:
    """Check that models, data and objective fit, and say what is asked of each teacher.

    Args:
        job: what to do.
        tables: of its tasks; their texts are not looked at.
        readings: what was read of models before; a sweep fits one job after another.

    Raises:
        ConfigError: models that don't fit each other, the data or the objective.
    """
    check_names(job)
    for task, table in zip(job.tasks, tables, strict=True):
        check_labels(_objective(job, task, _logits_signal(job, task.name, None)), table)
    models = {name: readings.teacher(teacher) for name, teacher in job.hosts().items()}
    by_task = {table.task.name: table for table in tables}
    config, tokenizer = readings.student(job, tables)
    for name, teacher in job.hosts().items():
        check_teacher(teacher, models[name], by_task[teacher.task], tokenizer)
    matches = tuple(task_matches(job, task, models, config) for task in job.tasks)
    sizes = {t.task.name: t.kind.num_labels(t.label_names, tokenizer) for t in tables}
    for task, each in zip(job.tasks, matches, strict=True):
        signal = _logits_signal(job, task.name, sizes[task.name])
        objective = _objective(job, task, signal, each)
        check_droppable(job, task.name, each, objective.needs_route)
        check_projections(each, optimizer_class(job.training))
    names = [task.name for task in job.tasks]
    tokenizers = tuple(
        {STUDENT_VIEW: tokenizer}
        | {
            teacher.name: models[teacher.name].tokenizer
            for teacher in job.teachers_of(task.name)
            if teacher.inputs == "own"
        }
        for task in job.tasks
    )
    for task, each in zip(job.tasks, tokenizers, strict=True):
        check_mask(task, each)
    return Fitting(
        tokenizers=tokenizers,
        teachers=tuple(
            _prepared(
                job,
                t,
                models.get(t.name),
                by_task[t.task],
                names.index(t.task),
                sizes[t.task],
                matches,
                _logits_signal(job, t.task, sizes[t.task]),
                readings,
            )
            for t in job.teachers
        ),
        matches=matches,
        num_labels=tuple(sizes.values()),
    )


def _objective(
    job: DistillJob, task: Task, logits: Signal, matches: Sequence[TaskMatch] = ()
) -> Objective:
    weights = {teacher.name: teacher.weight for teacher in job.teachers_of(task.name)}
    return Objective(
        job.objective_of(task.name), weights, None, matches, logits, kind_of(task.kind)
    )


def _logits_signal(job: DistillJob, task: str, classes: int | None) -> Signal:
    """Return the signal of the logits; with top-k it is no longer than the classes are many."""
    labels = job.labels
    if labels.top_k is None:
        return Signal(dtype=labels.dtype)
    temperatures = {job.objective_of(task).temperature, *labels.top_k_temperatures}
    return Signal(
        dtype=labels.dtype,
        top_k=labels.top_k if classes is None else min(labels.top_k, classes),
        temperatures=tuple(sorted(temperatures)),
    )


def _prepared(
    job: DistillJob,
    teacher: Teacher,
    model: TeacherModel | None,
    table: Table,
    task: int,
    num_labels: int,
    matches: Sequence[Sequence[TaskMatch]],
    logits: Signal,
    readings: Readings,
) -> PreparedTeacher:
    if model is None:
        sides = [s.supplied[teacher.name] for s in (table.train, table.eval) if s is not None]
        return PreparedTeacher(
            teacher=teacher,
            spec=None,
            fingerprint=column_fingerprint(*sides),
            task=task,
            view=teacher.name,
            signals=(logits,),
        )
    mine = [match for match in matches[task] if match.teacher == teacher.name]
    # Two matches of one statistic ask for one signal.
    signals = tuple(dict.fromkeys([logits, *(match.signal for match in mine)]))
    kind = table.task.kind
    adaptor = teacher.adaptor or table.task.adaptor
    padding = padding_of(model.tokenizer, model.config, table.kind.layout)
    code = _code_of(teacher, kind, adaptor, padding)
    num_classes = None if table.kind.has_labels else num_labels
    if num_classes is not None and num_classes < model.config.get_text_config().vocab_size:
        code += f", its first {num_classes} logits"
    spec = TeacherSpec(
        name=teacher.name,
        model=str(readings.folder(teacher)),
        fingerprint=readings.fingerprint(
            teacher,
            adaptor=code,
        ),
        kind=kind,
        dtype=teacher.dtype,
        batch_tokens=teacher.batch_tokens,
        padding=padding,
        num_threads=1,
        adaptor=adaptor,
        architecture=teacher.architecture,
        attention=needs_attention([match.spec for match in mine]),
        trust_remote_code=teacher.trust_remote_code,
        num_classes=num_classes,
    )
    return PreparedTeacher(
        teacher=teacher,
        spec=spec,
        fingerprint=spec.fingerprint,
        task=task,
        view=teacher.name if teacher.inputs == "own" else STUDENT_VIEW,
        signals=signals,
        order=order_of(model.config, table),
        # What outputs mean is the adaptor's to say.
        unnamed=adaptor is None and is_unnamed(model.config, table),
    )


def _code_of(teacher: Teacher, kind: str, adaptor: Any, padding: Padding) -> str:
    """Name all the code that a teacher's answers depend on."""
    name = kind if adaptor is None else code_name(adaptor_of(kind, adaptor))
    if teacher.architecture is not None:
        name += f" of {code_name(kind_of(kind, teacher.architecture).model_class.wrapped)}"
    # Labels of these were once made in batches that were padded on the right, whatever the model.
    if padding.side == "left":
        name += ", padded on the left"
    return f"{name}, batches of one length" if padding.is_read else name
