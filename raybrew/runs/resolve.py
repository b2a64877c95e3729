"""From a job to a resolved job: data read and checked, models inspected, examples encoded."""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from raybrew.config import DistillationConfig, DistillJob, Student, Task, Teacher, TrainJob
from raybrew.data.batch_sequence import check_mixing
from raybrew.data.columns import SuppliedLogits, column_fingerprint
from raybrew.data.encoding import distinct_keys
from raybrew.data.payload import Payload, Signal
from raybrew.data.split import STUDENT_VIEW, Padding
from raybrew.errors import ConfigError, DataError
from raybrew.labels.contents import model_fingerprint, write_manifest
from raybrew.labels.logits import pack_rows
from raybrew.labels.remote import StoreSpec, check_store
from raybrew.labels.store import LabelStore
from raybrew.matches.capture import code_name, needs_attention
from raybrew.matches.plan import TaskMatch
from raybrew.models.inputs import padding_of
from raybrew.objective import Objective
from raybrew.runs.checks import (
    ModelMetadata,
    assumed_order,
    check_adaptor_paths,
    check_architectures,
    check_augmentation,
    check_columns,
    check_droppable,
    check_labels,
    check_mask,
    check_objective_names,
    check_student,
    check_teacher,
    is_unnamed,
    order_of,
    read_teacher,
    task_matches,
)
from raybrew.tasks import kind_of
from raybrew.tasks.adaptors import adaptor_of
from raybrew.tasks.task_data import Table, encode_table, read_table
from raybrew.teachers.teacher import TeacherSpec
from raybrew.training.build import RankPlan, TaskPlan, TeacherPlan
from raybrew.training.callbacks import check_extensions
from raybrew.training.job import Fitting, ResolvedJob, ResolvedTask, ResolvedTeacher
from raybrew.training.module import check_projections
from raybrew.training.optimization import check_optimization, optimizer_class

# What the models of a job say without their weights, each read once.

StudentModel = tuple[PreTrainedConfig, PreTrainedTokenizerBase]


class MetadataCache:
    """Configurations, tokenizers and fingerprints, kept as long as this object lives.

    One job asks once; a sweep asks for many jobs that differ in a few fields. Files that change
    meanwhile aren't seen.
    """

    def __init__(self, fingerprints: Mapping[tuple[str, ...], str] | None = None):
        self._teachers: dict[tuple[str, bool], ModelMetadata] = {}
        self._students: dict[str, StudentModel] = {}
        self._folders: dict[str, Path] = {}
        self.fingerprints: dict[tuple[str, ...], str] = dict(fingerprints or {})

    def teacher(self, teacher: Teacher) -> ModelMetadata:
        """Return a teacher's configuration and tokenizer."""
        key = (teacher.model_path, teacher.trust_remote_code)
        if key not in self._teachers:
            self._teachers[key] = read_teacher(teacher)
        return self._teachers[key]

    def student(self, job: DistillJob, tables: Sequence[Table]) -> StudentModel:
        """Return the student's configuration and tokenizer, checked."""
        # All that it follows from: its section, the teachers it may start from, the classes.
        key = json.dumps(
            [
                job.student.model_dump(mode="json"),
                [(t.name, t.model, t.trust_remote_code) for t in job.teachers],
                [(table.task.model_dump(mode="json"), table.label_names) for table in tables],
            ]
        )
        if key not in self._students:
            self._students[key] = check_student(job.student, list(tables), job.hosts())
        return self._students[key]

    def folder(self, teacher: Teacher) -> Path:
        """Return the local folder of a teacher's files."""
        path = teacher.model_path
        if path not in self._folders:
            self._folders[path] = _local_folder(teacher)
        return self._folders[path]

    def fingerprint(self, teacher: Teacher, *, adaptor: str) -> str:
        """Return the fingerprint of a teacher's answers."""
        folder, trust = self.folder(teacher), teacher.trust_remote_code
        key = (str(folder), teacher.dtype, adaptor, *(["its code"] if trust else []))
        if key not in self.fingerprints:
            self.fingerprints[key] = model_fingerprint(
                folder, dtype=teacher.dtype, adaptor=adaptor, own_code=trust
            )
        return self.fingerprints[key]


def _local_folder(teacher: Teacher) -> Path:
    folder = Path(teacher.model_path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    try:
        patterns = ["*.json", "*.safetensors", "pytorch_model*.bin", "*.txt", "*.model"]
        patterns += ["*.py"] if teacher.trust_remote_code else []
        return Path(snapshot_download(teacher.model_path, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"teachers[{teacher.name}].model: {teacher.model!r} is no folder, and as a hub id it "
            f"can't be had: {error}"
        ) from error


# Logits that the data has already, into the label store: from then on they are labels as any.


def store_supplied(
    job: DistillJob, tables: Sequence[Table], teachers: Sequence[ResolvedTeacher]
) -> None:
    """Write the columns that stand in for teachers into the store, what it has already excepted.

    Args:
        job: names the store.
        tables: of its tasks.
        teachers: of the job; those with a model are passed over.

    Raises:
        DataError: a value that the labels' precision can't hold; names the row.
        LabelError: they can't be written.
        StoreFullError: there is no room; nobody could compute them again.
    """
    columns = [teacher for teacher in teachers if teacher.spec is None]
    if not columns:
        return
    store = LabelStore(replace(StoreSpec.of(job.labels), on_full="stop"))
    for teacher in columns:
        name, table = teacher.teacher.name, tables[teacher.task]
        write_manifest(
            store.location,
            teacher.fingerprint,
            teacher=name,
            model=f"column {teacher.teacher.logits} of task {table.task.name}",
        )
        for side, rows in (("train", table.train), ("eval", table.eval)):
            for signal in teacher.signals if rows is not None else ():
                assert rows is not None
                logits = rows.supplied[name]
                payload = _payload(logits, signal, f"tasks[{table.task.name}].{side}", teacher)
                _append(store, teacher.fingerprint, signal, logits, payload)


def _payload(
    logits: SuppliedLogits, signal: Signal, what: str, teacher: ResolvedTeacher
) -> Payload:
    payload, bad = pack_rows(torch.from_numpy(logits.values), logits.lengths, signal)
    if bad is not None:
        raise DataError(
            f"{what}: row {bad}: expected logits that {signal.dtype} can hold in "
            f"{teacher.teacher.logits!r}, got larger ones; choose another labels.dtype"
        )
    return payload


def _append(
    store: LabelStore, fingerprint: str, signal: Signal, logits: SuppliedLogits, payload: Payload
) -> None:
    target = store.signal(fingerprint, signal)
    first, _ = distinct_keys(logits.keys)
    missing = first[~target.contains(logits.keys[first])]
    target.append(logits.keys[missing], payload.take(missing))
    target.flush()


# The order of things: read, check, plan, encode.

logger = logging.getLogger(__name__)


def prepare(job: DistillJob, folder: Path) -> ResolvedJob:
    """Read, check and encode all that a distillation needs.

    Args:
        job: what to do.
        folder: where the encoded splits are saved.

    Raises:
        ConfigError: models that don't fit each other, the data or the objective.
        DataError: data that isn't what its task says.
    """
    tables = read_tables(job)
    fitting = fit_together(job, tables, MetadataCache())
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
    return ResolvedJob(encoded, fitting.teachers, fitting.matches)


def prepare_supervised(job: TrainJob, folder: Path) -> ResolvedJob:
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
    return ResolvedJob(
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


def fit_together(job: DistillJob, tables: Sequence[Table], readings: MetadataCache) -> Fitting:
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
    model: ModelMetadata | None,
    table: Table,
    task: int,
    num_labels: int,
    matches: Sequence[Sequence[TaskMatch]],
    logits: Signal,
    readings: MetadataCache,
) -> ResolvedTeacher:
    if model is None:
        sides = [s.supplied[teacher.name] for s in (table.train, table.eval) if s is not None]
        return ResolvedTeacher(
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
    return ResolvedTeacher(
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


# From a prepared job to what each rank is to do, as values.


def distill_plan(job: DistillJob, preparation: ResolvedJob) -> RankPlan:
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


def supervised_plan(job: TrainJob, preparation: ResolvedJob) -> RankPlan:
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


def _task(prepared: ResolvedTask, distillation: DistillationConfig | None) -> TaskPlan:
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


# From a job to what its processes need: data read and checked, models known, examples encoded.
#
#     job ──► read data, labels ──► read configs, tokenizers ──► check ──► encode ──► folders, plans
#
# Nothing here loads a model's weights, so that a mistake costs seconds. No Ray.
