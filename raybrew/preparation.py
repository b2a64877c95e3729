"""From a job to what its processes need: data read and checked, models known, examples encoded.

    job ──► read data, labels ──► read configs, tokenizers ──► check ──► encode ──► folders, plans

Nothing here loads a model's weights, so that a mistake costs seconds. No Ray.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from raybrew.config import DistillJob, Student, Task, Teacher, TrainJob
from raybrew.data.columns import Rows, read_labels, read_rows
from raybrew.data.encoding import EncodedSplit, EncodedView, encode, same_vocabulary
from raybrew.data.sources import load_source
from raybrew.errors import ConfigError
from raybrew.labels.fingerprint import model_fingerprint
from raybrew.labels.payload import Signal
from raybrew.models.pretrained import read_config, read_tokenizer
from raybrew.models.students import student_config
from raybrew.objective import Objective
from raybrew.student.loop import STUDENT_VIEW
from raybrew.student.optimization import check_optimization
from raybrew.teachers.teacher import TeacherSpec

__all__ = ["Preparation", "PreparedTask", "PreparedTeacher", "prepare", "prepare_supervised"]


@dataclass(frozen=True)
class PreparedTask:
    """A task whose examples are encoded.

    Args:
        task: the job's section.
        label_names: classes, in the order of the logits.
        train: encoded training split.
        eval: encoded evaluation split.
        folders: where they are saved, by `train` and `eval`.
        truncated: examples that were cut at `max_length`.
    """

    task: Task
    label_names: tuple[str, ...]
    train: EncodedSplit
    eval: EncodedSplit | None
    folders: Mapping[str, str]
    truncated: int

    def split(self, name: str) -> EncodedSplit:
        """Return `train` or `eval`."""
        split = self.train if name == "train" else self.eval
        assert split is not None, name
        return split


@dataclass(frozen=True)
class PreparedTeacher:
    """A teacher that is known to fit its task.

    Args:
        teacher: the job's section.
        spec: what hosts it.
        task: index of its task.
        view: the encoded view that it reads.
        signals: what is asked of it.
    """

    teacher: Teacher
    spec: TeacherSpec
    task: int
    view: str
    signals: tuple[Signal, ...]


@dataclass(frozen=True)
class Preparation:
    """A checked job with its data encoded."""

    tasks: tuple[PreparedTask, ...]
    teachers: tuple[PreparedTeacher, ...] = ()


@dataclass(frozen=True)
class _Table:
    task: Task
    train: Rows
    eval: Rows | None
    label_names: tuple[str, ...]
    train_labels: np.ndarray
    eval_labels: np.ndarray | None


@dataclass(frozen=True)
class _TeacherModel:
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase


def prepare(job: DistillJob, folder: Path) -> Preparation:
    """Read, check and encode all that a distillation needs.

    Args:
        job: what to do.
        folder: where the encoded splits are saved.

    Raises:
        ConfigError: models that don't fit each other, the data or the objective.
        DataError: data that isn't what its task says.
    """
    objectives = [
        Objective(job.distillation, {t.name: t.weight for t in job.teachers_of(task.name)})
        for task in job.tasks
    ]
    check_optimization(job.training)
    tables = [_read(task) for task in job.tasks]
    for objective, table in zip(objectives, tables, strict=True):
        _check_labels(objective, table)
    hosts = {teacher.name: teacher for teacher in job.teachers}
    models = {teacher.name: _teacher_model(teacher) for teacher in job.teachers}
    names = [task.name for task in job.tasks]
    tokenizer = _check_student(job.student, tables, hosts)
    for teacher in job.teachers:
        _check_teacher(teacher, models[teacher.name], tables[names.index(teacher.task)], tokenizer)
    tasks = []
    for table in tables:
        own = {
            teacher.name: models[teacher.name].tokenizer
            for teacher in job.teachers_of(table.task.name)
            if teacher.inputs == "own"
        }
        tasks.append(_encode(table, {STUDENT_VIEW: tokenizer, **own}, folder))
    signals = (Signal(dtype=job.labels.dtype),)
    teachers = tuple(
        PreparedTeacher(
            teacher=teacher,
            spec=_spec(teacher, models[teacher.name].tokenizer, tables[names.index(teacher.task)]),
            task=names.index(teacher.task),
            view=teacher.name if teacher.inputs == "own" else STUDENT_VIEW,
            signals=signals,
        )
        for teacher in job.teachers
    )
    return Preparation(tuple(tasks), teachers)


def prepare_supervised(job: TrainJob, folder: Path) -> Preparation:
    """Read, check and encode all that supervised training needs; see `prepare`."""
    check_optimization(job.training)
    tables = [_read(task) for task in job.tasks]
    tokenizer = _check_student(job.model, tables, {}, what="model")
    return Preparation(tuple(_encode(t, {STUDENT_VIEW: tokenizer}, folder) for t in tables))


def _read(task: Task) -> _Table:
    what = f"tasks[{task.name}]"
    train: Dataset = load_source(task.train, f"{what}.train")
    evaluation = None if task.eval is None else load_source(task.eval, f"{what}.eval")
    names, train_labels, eval_labels = read_labels(task, train, evaluation)
    return _Table(
        task=task,
        train=read_rows(task, train, f"{what}.train"),
        eval=None if evaluation is None else read_rows(task, evaluation, f"{what}.eval"),
        label_names=names,
        train_labels=train_labels,
        eval_labels=eval_labels,
    )


def _check_labels(objective: Objective, table: _Table) -> None:
    missing = int((table.train_labels < 0).sum())
    # Unlabelled rows are fine for all that can do without a label, row by row.
    if objective.needs_labels and missing == len(table.train_labels):
        raise ConfigError(
            f"distillation: {', '.join(objective.needs_labels)} needs labels, but no row of "
            f"tasks[{table.task.name}].train has one"
        )


def _teacher_model(teacher: Teacher) -> _TeacherModel:
    what = f"teachers[{teacher.name}].model"
    return _TeacherModel(read_config(teacher.model, what), read_tokenizer(teacher.model, what))


def _check_student(
    student: Student,
    tables: list[_Table],
    hosts: Mapping[str, Teacher],
    what: str = "student",
) -> PreTrainedTokenizerBase:
    if len(tables) > 1:
        raise ConfigError(
            f"tasks: expected one task, got {len(tables)}; a student with several heads is not "
            "built yet"
        )
    (table,) = tables
    config, tokenizer = student_config(
        student,
        num_labels=len(table.label_names),
        label_names=table.label_names,
        teachers=hosts,
        what=what,
    )
    _check_length(what, config, table.task)
    return tokenizer


def _check_teacher(
    teacher: Teacher,
    model: _TeacherModel,
    table: _Table,
    student_tokenizer: PreTrainedTokenizerBase,
) -> None:
    what = f"teachers[{teacher.name}]"
    classes = table.label_names
    found = model.config.num_labels
    if found != len(classes):
        raise ConfigError(
            f"{what}.model: expected {len(classes)} labels as task {table.task.name!r} has "
            f"({', '.join(classes)}), got a model with {found}"
        )
    names = tuple((model.config.id2label or {}).get(i, f"LABEL_{i}") for i in range(found))
    made_up = all(name.startswith("LABEL_") for name in names)
    if not made_up and sorted(names) == sorted(classes) and names != classes:
        raise ConfigError(
            f"{what}.model: expected the labels in the task's order ({', '.join(classes)}), got "
            f"{', '.join(names)}; set tasks[{table.task.name}].label_names to the teacher's order"
        )
    if teacher.inputs == "shared" and not same_vocabulary(model.tokenizer, student_tokenizer):
        raise ConfigError(
            f"{what}.inputs: the teacher's vocabulary ({len(model.tokenizer)} entries) is not the "
            f"student's ({len(student_tokenizer)} entries), so it can't read the student's token "
            "ids; set `inputs: own` to encode each example for it by its own tokenizer"
        )
    _check_length(what, model.config, table.task)


def _check_length(what: str, config: PreTrainedConfig, task: Task) -> None:
    most = getattr(config, "max_position_embeddings", None)
    # RoBERTa counts positions from the padding id on.
    reserved = (config.pad_token_id or 0) + 1 if "roberta" in config.model_type else 0
    if most is not None and task.max_length > most - reserved:
        raise ConfigError(
            f"tasks[{task.name}].max_length: expected at most {most - reserved}, the positions of "
            f"the model of {what}, got {task.max_length}"
        )


def _encode(
    table: _Table, tokenizers: Mapping[str, PreTrainedTokenizerBase], folder: Path
) -> PreparedTask:
    splits: dict[str, EncodedSplit] = {}
    folders: dict[str, str] = {}
    truncated = 0
    sides = [("train", table.train, table.train_labels)]
    if table.eval is not None and table.eval_labels is not None:
        sides.append(("eval", table.eval, table.eval_labels))
    for side, rows, labels in sides:
        views: dict[str, EncodedView] = {}
        for name, tokenizer in tokenizers.items():
            views[name], cut = encode(tokenizer, rows.texts, rows.pairs, table.task.max_length)
            truncated += cut
        place = folder / table.task.name / side
        EncodedSplit(views, labels).save(place)
        splits[side], folders[side] = EncodedSplit.load(place), str(place)
    return PreparedTask(
        task=table.task,
        label_names=table.label_names,
        train=splits["train"],
        eval=splits.get("eval"),
        folders=folders,
        truncated=truncated,
    )


def _spec(teacher: Teacher, tokenizer: PreTrainedTokenizerBase, table: _Table) -> TeacherSpec:
    folder = _local_folder(teacher)
    kind = table.task.kind
    return TeacherSpec(
        name=teacher.name,
        model=str(folder),
        fingerprint=model_fingerprint(folder, dtype=teacher.dtype, adaptor=kind),
        kind=kind,
        dtype=teacher.dtype,
        batch_tokens=teacher.batch_tokens,
        pad_token_id=int(tokenizer.pad_token_id or 0),
        num_threads=max(1, int(teacher.resources.get("CPU", 1))),
    )


def _local_folder(teacher: Teacher) -> Path:
    folder = Path(teacher.model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    try:
        patterns = ["*.json", "*.safetensors", "pytorch_model*.bin", "*.txt", "*.model"]
        return Path(snapshot_download(teacher.model, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"teachers[{teacher.name}].model: {teacher.model!r} is no folder, and as a hub id it "
            f"can't be had: {error}"
        ) from error
