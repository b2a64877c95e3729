"""From a job to a resolved job: data read and checked, models inspected, examples encoded.

    check_names ──► read_data ──► fit_models ──► TaskData.encode ──► ResolvedJob
    no file read    rows          configurations,  files
                                  tokenizers

No model's weights are loaded, so that a mistake costs seconds. No Ray.
"""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedTokenizerBase

from raybrew.config import DistillJob, LabelConfig, Student, Task, Teacher, TrainJob
from raybrew.data.batch_sequence import check_mixing
from raybrew.data.columns import SuppliedLogits, column_fingerprint
from raybrew.data.encoding import distinct_keys
from raybrew.data.payload import Signal
from raybrew.data.split import STUDENT_VIEW, Padding
from raybrew.errors import ConfigError, DataError
from raybrew.labels.contents import model_fingerprint, write_manifest
from raybrew.labels.logits import pack_rows
from raybrew.labels.remote import StoreSpec, check_store
from raybrew.labels.store import LabelStore
from raybrew.matches.capture import code_name, needs_attention
from raybrew.matches.spec import check_projection_options
from raybrew.models.class_order import assumed_order, is_unnamed, order_of
from raybrew.models.inputs import padding_of
from raybrew.objective import Objective
from raybrew.runs.checks import (
    ModelMetadata,
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
    read_teacher,
    task_matches,
)
from raybrew.runs.defaults import choose_settings, with_hard_labels
from raybrew.tasks import adaptor_of, task_type_of
from raybrew.tasks.task_data import TaskData, read_task_data, with_labels
from raybrew.teachers.teacher import ResolvedTeacher
from raybrew.training.callbacks import check_extensions
from raybrew.training.job import ResolvedJob, ResolvedTask
from raybrew.training.optimization import check_optimization, optimizer_class

logger = logging.getLogger(__name__)

Tokenizers = Mapping[str, PreTrainedTokenizerBase]
"""Tokenizers that read a task's texts, by the name of their view."""


def resolve_job(job: DistillJob | TrainJob, folder: Path) -> ResolvedJob:
    """Read, check and encode everything that a job needs.

    Args:
        job: what to do.
        folder: where the encoded splits are saved.

    Raises:
        ConfigError: models that don't fit each other, the data or the objective.
        DataError: data that isn't what its task says.
    """
    objectives = check_names(job)
    data = read_data(job)
    resolved, tokenizers = fit_models(job, data, objectives, MetadataCache())
    for task, rows in zip(resolved.tasks, data, strict=True):
        for teacher in task.teachers:
            if teacher.unnamed and rows.order_assumed:
                logger.warning(assumed_order(f"teachers[{teacher.name}].model", rows))
    folders = [rows.encode(each, folder) for rows, each in zip(data, tokenizers, strict=True)]
    resolved = resolved.encoded(folders)
    store_columns(resolved, data)
    return resolved


def check_names(job: DistillJob | TrainJob) -> list[Objective]:
    """Refuse names and options that don't exist, before anything is read.

    Returns:
        The objective of each task, without its matches; none without teachers.

    Raises:
        ConfigError: a loss, a mixture, an optimizer or an option that doesn't exist.
    """
    objectives = []
    for task in job.tasks:
        check_augmentation(task)
        if isinstance(job, DistillJob):
            check_columns(task, job.teachers_of(task.name))
            check_objective_names(job, task)
            weights = {teacher.name: teacher.weight for teacher in job.teachers_of(task.name)}
            config = job.objective_of(task.name)
            logits = _logits_signal(job.labels, config.temperature)
            objectives.append(
                Objective(config, weights, logits=logits, kind=task_type_of(task.kind))
            )
    check_adaptor_paths(job)
    check_architectures(job)
    check_optimization(job.training)
    check_extensions(job.training)
    check_mixing(job.mixing, [task.name for task in job.tasks])
    return objectives


def read_data(job: DistillJob | TrainJob) -> list[TaskData]:
    """Read the rows of a job whose names are known to exist.

    Raises:
        ConfigError: the label store can't be used.
        DataError: data that isn't what its task says.
    """
    if isinstance(job, TrainJob):
        return [with_labels(read_task_data(task)) for task in job.tasks]
    check_store(job.labels)
    return [read_task_data(task, job.teachers_of(task.name)) for task in job.tasks]


def fit_models(
    job: DistillJob | TrainJob,
    data: Sequence[TaskData],
    objectives: Sequence[Objective],
    cache: "MetadataCache",
) -> tuple[ResolvedJob, list[Tokenizers]]:
    """Check that models, data and objective fit, and find out what is requested of each teacher.

    Args:
        job: what to do.
        data: rows of its tasks.
        objectives: of its tasks, from `check_names`.
        cache: what is known of models; a sweep fits one job after another.

    Returns:
        The job, which isn't encoded yet, and the tokenizers that read each task.

    Raises:
        ConfigError: models that don't fit each other, the data or the objective.
        DataError: no row has a label to learn from.
    """
    job = choose_settings(job, data)
    if isinstance(job, TrainJob):
        return _fit_supervised(job, data)
    for rows, objective in zip(data, objectives, strict=True):
        check_labels(objective, rows)
    models = {name: cache.teacher(teacher) for name, teacher in job.hosts().items()}
    student = cache.student(job, data)
    by_task = {rows.task.name: rows for rows in data}
    for name, teacher in job.hosts().items():
        check_teacher(teacher, models[name], by_task[teacher.task], student.tokenizer)
    tasks: list[ResolvedTask] = []
    tokenizers: list[Tokenizers] = []
    for rows, objective in zip(data, objectives, strict=True):
        teachers = job.teachers_of(rows.task.name)
        matches = task_matches(job, rows.task, models, student.config)
        check_droppable(job, rows.task.name, matches, objective.needs_route)
        for match in matches:
            check_projection_options(match.spec, optimizer_class(job.training))
        own = {t.name: models[t.name].tokenizer for t in teachers if t.inputs == "own"}
        tokenizers.append({STUDENT_VIEW: student.tokenizer} | own)
        check_mask(rows.task, tokenizers[-1])
        config = with_hard_labels(job.objective_of(rows.task.name), rows)
        task = _resolved_task(rows, job.student, student.tokenizer)
        task = replace(task, matches=matches, objective=config)
        logits = _logits_signal(job.labels, config.temperature, task.num_labels)
        resolved = [
            _hosted(teacher, task, logits, rows, cache)
            if teacher.name in models
            else _column(teacher, logits, rows)
            for teacher in teachers
        ]
        tasks.append(replace(task, teachers=tuple(resolved)))
    store = StoreSpec.of(job.labels)
    return ResolvedJob(_as_values(job), tuple(tasks), store), tokenizers


def _fit_supervised(
    job: TrainJob, data: Sequence[TaskData]
) -> tuple[ResolvedJob, list[Tokenizers]]:
    for rows in data:
        if not rows.kind.num_labelled(rows.train):
            raise DataError(
                f"tasks[{rows.task.name}].train: expected labels to learn from in "
                f"{rows.task.label!r}, got none in {len(rows.train)} rows"
            )
    tokenizer = check_student(job.model, data, {}, what="model").tokenizer
    for task in job.tasks:
        check_mask(task, {STUDENT_VIEW: tokenizer})
    tasks = tuple(_resolved_task(rows, job.model, tokenizer) for rows in data)
    return ResolvedJob(_as_values(job), tasks), [{STUDENT_VIEW: tokenizer}] * len(tasks)


def _resolved_task(
    rows: TaskData, student: Student, tokenizer: PreTrainedTokenizerBase
) -> ResolvedTask:
    return ResolvedTask(
        config=_without_rows(rows.task),
        label_names=rows.label_names,
        num_labels=rows.kind.num_labels(rows.label_names, tokenizer),
        adaptor=rows.task.adaptor if student.adaptor is None else student.adaptor,
    )


def _column(teacher: Teacher, logits: Signal, rows: TaskData) -> ResolvedTeacher:
    sides = [side.supplied[teacher.name] for side in (rows.train, rows.eval) if side is not None]
    return ResolvedTeacher(
        config=teacher,
        kind=rows.task.kind,
        fingerprint=column_fingerprint(*sides),
        signals=(logits,),
        view=teacher.name,
    )


def _hosted(
    teacher: Teacher, task: ResolvedTask, logits: Signal, rows: TaskData, cache: "MetadataCache"
) -> ResolvedTeacher:
    model = cache.teacher(teacher)
    mine = [match for match in task.matches if match.teacher == teacher.name]
    adaptor = rows.task.adaptor if teacher.adaptor is None else teacher.adaptor
    padding = padding_of(model.tokenizer, model.config, rows.kind.layout)
    code = _code_of(teacher, rows.task.kind, adaptor, padding)
    num_classes = None if rows.kind.has_labels else task.num_labels
    if num_classes is not None and num_classes < model.config.get_text_config().vocab_size:
        code += f", its first {num_classes} logits"
    return ResolvedTeacher(
        config=teacher,
        kind=rows.task.kind,
        fingerprint=cache.fingerprint(teacher, adaptor=code),
        # Two matches of one statistic share one signal.
        signals=tuple(dict.fromkeys([logits, *(match.signal for match in mine)])),
        view=teacher.name if teacher.inputs == "own" else STUDENT_VIEW,
        model=str(cache.folder(teacher)),
        padding=padding,
        adaptor=adaptor,
        attention=needs_attention([match.spec for match in mine]),
        num_classes=num_classes,
        order=order_of(model.config, rows),
        # What outputs mean is up to the adaptor.
        unnamed=adaptor is None and is_unnamed(model.config, rows),
    )


def _logits_signal(labels: LabelConfig, temperature: float, classes: int | None = None) -> Signal:
    """Return the signal of the logits; with top-k it is no longer than the classes are many."""
    if labels.top_k is None:
        return Signal(dtype=labels.dtype)
    return Signal(
        dtype=labels.dtype,
        top_k=labels.top_k if classes is None else min(labels.top_k, classes),
        temperatures=tuple(sorted({temperature, *labels.top_k_temperatures})),
    )


def _code_of(teacher: Teacher, kind: str, adaptor: Any, padding: Padding) -> str:
    """Name all the code that a teacher's answers depend on."""
    name = kind if adaptor is None else code_name(adaptor_of(kind, adaptor))
    if teacher.architecture is not None:
        name += f" of {code_name(task_type_of(kind, teacher.architecture).model_class.wrapped)}"
    # Labels of these were once made in batches that were padded on the right, whatever the model.
    if padding.side == "left":
        name += ", padded on the left"
    return f"{name}, batches of one length" if padding.is_read else name


# What every process gets to know: values, without rows.


def _as_values(job: DistillJob | TrainJob) -> DistillJob | TrainJob:
    """Return the job without rows, and with the driver's paths of models made absolute."""
    changes: dict[str, Any] = {"tasks": tuple(map(_without_rows, job.tasks))}
    if isinstance(job, TrainJob):
        return job.model_copy(update=changes | {"model": _with_absolute_paths(job.model, ())})
    teachers = tuple(
        teacher.model_copy(update={"model": _absolute(teacher.model)}) for teacher in job.teachers
    )
    student = _with_absolute_paths(job.student, job.hosts())
    return job.model_copy(update=changes | {"teachers": teachers, "student": student})


def _without_rows(task: Task) -> Task:
    return task.model_copy(update={"train": None, "eval": None, "transfer": ()})


def _with_absolute_paths(student: Student, teachers: Collection[str]) -> Student:
    layers = student.layers_from
    paths = {
        "model": _absolute(student.model),
        "tokenizer_from": _absolute(student.tokenizer_from, teachers),
        "layers_from": None if layers is None else (_absolute(layers[0], teachers), layers[1]),
    }
    return student.model_copy(update=paths)


def _absolute(path: str | None, names: Collection[str] = ()) -> str | None:
    # Ranks have a working directory of their own: relative paths are the driver's.
    if path is None or path in names or not Path(path).expanduser().is_dir():
        return path
    return str(Path(path).expanduser().absolute())


# Logits that the data has already are labels like any others, once they are in the store.


def store_columns(job: ResolvedJob, data: Sequence[TaskData]) -> None:
    """Write the columns that stand in for teachers into the store, except for what it has.

    Args:
        job: names the store and the teachers; those with a model are passed over.
        data: of its tasks.

    Raises:
        DataError: a value that the labels' precision can't hold; names the row.
        LabelError: they can't be written.
        StoreFullError: there is no room; no teacher could compute them again.
    """
    columns = [
        (teacher, rows)
        for task, rows in zip(job.tasks, data, strict=True)
        for teacher in task.teachers
        if teacher.is_column
    ]
    if not columns:
        return
    store = LabelStore(replace(StoreSpec.of(job.labels), on_full="stop"))
    for teacher, rows in columns:
        task = rows.task.name
        model = f"column {teacher.config.logits} of task {task}"
        write_manifest(store.location, teacher.fingerprint, teacher=teacher.name, model=model)
        sides = {"train": rows.train} | ({} if rows.eval is None else {"eval": rows.eval})
        for side, side_rows in sides.items():
            for signal in teacher.signals:
                logits = side_rows.supplied[teacher.name]
                _store_column(store, teacher, signal, logits, f"tasks[{task}].{side}")


def _store_column(
    store: LabelStore, teacher: ResolvedTeacher, signal: Signal, logits: SuppliedLogits, what: str
) -> None:
    payload, bad = pack_rows(torch.from_numpy(logits.values), logits.lengths, signal)
    if bad is not None:
        raise DataError(
            f"{what}: row {bad}: expected logits that {signal.dtype} can hold in "
            f"{teacher.config.logits!r}, got larger ones; choose another labels.dtype"
        )
    target = store.signal(teacher.fingerprint, signal)
    first, _ = distinct_keys(logits.keys)
    missing = first[~target.contains(logits.keys[first])]
    target.append(logits.keys[missing], payload.take(missing))
    target.flush()


# What the models of a job tell without their weights, each read once.


class MetadataCache:
    """Configurations, tokenizers and fingerprints, kept as long as this object lives.

    A sweep resolves many jobs that differ in a few fields. Changes of files meanwhile aren't seen.
    """

    def __init__(self, fingerprints: Mapping[tuple[str, ...], str] | None = None):
        self._teachers: dict[tuple[str, bool], ModelMetadata] = {}
        self._students: dict[str, ModelMetadata] = {}
        self._folders: dict[str, Path] = {}
        self.fingerprints: dict[tuple[str, ...], str] = dict(fingerprints or {})

    def teacher(self, teacher: Teacher) -> ModelMetadata:
        """Return a teacher's configuration and tokenizer."""
        key = (teacher.model_path, teacher.trust_remote_code)
        if key not in self._teachers:
            self._teachers[key] = read_teacher(teacher)
        return self._teachers[key]

    def student(self, job: DistillJob, data: Sequence[TaskData]) -> ModelMetadata:
        """Return the student's configuration and tokenizer, checked."""
        # All that it follows from: its section, the teachers it may start from, the classes.
        key = json.dumps(
            [
                job.student.model_dump(mode="json"),
                [(t.name, t.model, t.trust_remote_code) for t in job.teachers],
                [(each.task.model_dump(mode="json"), each.label_names) for each in data],
            ]
        )
        if key not in self._students:
            self._students[key] = check_student(job.student, data, job.hosts())
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
