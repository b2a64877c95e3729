"""Whether student, teachers, data and objective fit each other; nothing here loads weights."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from raybrew.config import DistillJob, Student, Task, Teacher
from raybrew.data.encoding import same_vocabulary
from raybrew.data.encoding_check import encoding_difference
from raybrew.errors import ConfigError
from raybrew.kinds import KINDS, Kind, kind_of
from raybrew.matching.plan import TaskMatch
from raybrew.models.class_order import class_order, model_classes, names_differ
from raybrew.models.model_source import ModelSource
from raybrew.models.multitask import Head, multitask_config
from raybrew.models.padding import fit_tokenizer
from raybrew.models.positions import enough_positions, most_positions, trained_positions
from raybrew.models.pretrained import meta_model, runs_own_code
from raybrew.models.students import student_config
from raybrew.models.trial import check_runs
from raybrew.models.vocabulary import RESIZE, check_vocabulary
from raybrew.objective import Objective
from raybrew.preparation.tables import Table

__all__ = [
    "TeacherModel",
    "assumed_order",
    "check_augmentation",
    "check_class_names",
    "check_columns",
    "check_droppable",
    "check_labels",
    "check_mask",
    "check_student",
    "check_teacher",
    "is_unnamed",
    "order_of",
    "read_teacher",
]


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TeacherModel:
    """What a teacher's folder says of it without its weights."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase


def check_augmentation(task: Task) -> None:
    """Refuse changed copies of rows that can't be changed."""
    if task.augmentation is not None and not kind_of(task.kind).augments:
        raise ConfigError(
            f"tasks[{task.name}].augmentation: expected a kind of task whose rows may be changed "
            f"({', '.join(name for name, kind in KINDS.items() if kind.augments)}), got "
            f"{task.kind!r}; leave the augmentation out"
        )


def check_columns(task: Task, teachers: Sequence[Teacher]) -> None:
    """Refuse columns of logits where no column can stand in for a teacher."""
    for teacher in teachers:
        if teacher.logits is None:
            continue
        what = f"teachers[{teacher.name}].logits"
        if not kind_of(task.kind).takes_column:
            raise ConfigError(
                f"{what}: expected a teacher of a kind of task whose logits are those of rows or "
                f"words ({', '.join(name for name, kind in KINDS.items() if kind.takes_column)}), "
                f"got one of {task.kind!r}; give it a `model`"
            )
        if task.augmentation is not None:
            raise ConfigError(
                f"{what}: expected no tasks[{task.name}].augmentation, as the column says nothing "
                "of changed copies of its rows; leave it out, or give the teacher a `model`"
            )


def check_mask(task: Task, tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> None:
    """Refuse masking with a word that isn't the mask token of a model that reads it.

    Args:
        task: the job's section.
        tokenizers: by the name of who reads.
    """
    augmentation = task.augmentation
    if augmentation is None or all(each.name != "masking" for each in augmentation.operations):
        return
    for name, tokenizer in tokenizers.items():
        if tokenizer.split_special_tokens:
            raise ConfigError(
                f"tasks[{task.name}].augmentation.operations: expected no masking for {name}, "
                f"which reads {augmentation.mask!r} in a text as text; take deleting instead"
            )
        if tokenizer.mask_token != augmentation.mask:
            raise ConfigError(
                f"tasks[{task.name}].augmentation.mask: expected the mask token of {name}, "
                f"{tokenizer.mask_token!r}, got {augmentation.mask!r}; where models have different "
                "ones, or none, take deleting instead of masking"
            )


def check_labels(objective: Objective, table: Table) -> None:
    """Refuse an objective that needs what no row has."""
    if objective.needs_route and table.task.teacher_column is None:
        raise ConfigError(
            f"distillation.mixture: to route rows to teachers, expected "
            f"tasks[{table.task.name}].teacher_column to name the column with each row's teacher, "
            "got none"
        )
    # Unlabelled rows are fine for all that can do without a label, row by row.
    if objective.needs_labels and not table.kind.num_labelled(table.train):
        raise ConfigError(
            f"distillation: {', '.join(objective.needs_labels)} needs labels, but no row of "
            f"tasks[{table.task.name}].train has one"
        )


def check_droppable(
    job: DistillJob, task: str, matches: Sequence[TaskMatch], needs_route: bool
) -> None:
    """Refuse `on_loss: drop` where nothing can stand in for a teacher of the task."""
    distillation = job.objective_of(task)
    for name in (each.name for each in job.teachers_of(task) if each.on_loss == "drop"):
        reasons = []
        if any(match.teacher == name for match in matches):
            reasons.append("a match compares the student's layers with this teacher's")
        if needs_route:
            reasons.append(f"mixture {distillation.mixture!r} routes rows to it")
        if reasons:
            raise ConfigError(
                f"teachers[{name}].on_loss: expected fail or wait, got drop: "
                f"{' and '.join(reasons)}, and no other teacher can stand in for it"
            )


def read_teacher(teacher: Teacher) -> TeacherModel:
    """Read a teacher's configuration and tokenizer."""
    source = ModelSource.of_teacher(teacher)
    config, tokenizer = source.config(), source.tokenizer()
    own_code = teacher.architecture is not None or runs_own_code(config)
    fit_tokenizer(tokenizer, config, source.field, own_code=own_code)
    return TeacherModel(config, tokenizer)


def check_student(
    student: Student,
    tables: list[Table],
    hosts: Mapping[str, Teacher],
    what: str = "student",
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Check the student, and return its configuration and tokenizer."""
    heads = [
        Head.of(table.task.name, _kind_of(table, student, what), table.label_names)
        for table in tables
    ]
    if len(heads) == 1:
        config, tokenizer = student_config(
            student,
            num_labels=heads[0].num_labels,
            label_names=heads[0].label_names,
            teachers=hosts,
            what=what,
            kind=heads[0].kind,
        )
        check_runs(heads[0].kind.model_class, config, tokenizer, what)
    else:
        config, tokenizer = multitask_config(student, heads, hosts, what)
    for table in tables:
        _check_tokenizer(what, tokenizer, table)
        _check_length(what, config, table.task, _kind_of(table, student, what))
    return config, tokenizer


def _kind_of(table: Table, student: Student, what: str) -> Kind:
    return kind_of(table.task.kind, student.architecture, f"{what}.architecture")


def check_teacher(
    teacher: Teacher,
    model: TeacherModel,
    table: Table,
    student_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Refuse a teacher of other classes, another vocabulary or encoding, or too few positions."""
    what = f"teachers[{teacher.name}]"
    _check_outputs(f"{what}.model", model.config, table)
    check_vocabulary(model.config, model.tokenizer, f"{what}.model", RESIZE)
    if teacher.inputs == "own" and not table.kind.own_inputs:
        raise ConfigError(
            f"{what}.inputs: expected `shared` for {table.task.kind}, whose classes are the "
            "vocabulary's tokens, got `own`"
        )
    if teacher.inputs == "own":
        _check_tokenizer(what, model.tokenizer, table)
    else:
        _check_shared(what, teacher.name, model, table, student_tokenizer)
    kind = kind_of(table.task.kind, teacher.architecture, f"{what}.architecture")
    _check_length(what, model.config, table.task, kind)


def _check_shared(
    what: str, name: str, model: TeacherModel, table: Table, student: PreTrainedTokenizerBase
) -> None:
    """Refuse a teacher that can't read the student's token ids."""
    remedy = "set `inputs: own` to encode each example for it by its own tokenizer"
    if not table.kind.own_inputs:
        remedy = f"set student.tokenizer_from to {name}, as {table.task.kind} needs one tokenizer"
    if not same_vocabulary(model.tokenizer, student):
        raise ConfigError(
            f"{what}.inputs: the teacher's vocabulary ({len(model.tokenizer)} entries) is not the "
            f"student's ({len(student)} entries), so it can't read the student's token "
            f"ids; {remedy}"
        )
    makes_segments = "token_type_ids" in model.tokenizer.model_input_names
    difference = encoding_difference(
        model.tokenizer,
        student,
        table.train.texts,
        table.train.pairs,
        table.task.max_length,
        # A model without them, DistilBERT's, passes over the student's.
        segments=makes_segments or hasattr(model.config, "type_vocab_size"),
    )
    if difference is not None:
        raise ConfigError(
            f"{what}.inputs: expected a teacher that reads texts as the student does, got "
            f"{difference}; {remedy}"
        )


def _check_tokenizer(what: str, tokenizer: PreTrainedTokenizerBase, table: Table) -> None:
    if table.kind.needs_offsets and not tokenizer.is_fast:
        raise ConfigError(
            f"{what}: expected a fast tokenizer, which says what each token is of the text, as "
            f"{table.task.kind} needs, got {type(tokenizer).__name__}"
        )


def _check_outputs(what: str, config: PreTrainedConfig, table: Table) -> None:
    """Refuse a model whose logits aren't those of the task."""
    kind, classes = table.kind, table.label_names
    if not kind.has_labels:  # its classes are the tokens, and one tokenizer is the condition
        return
    expected, found = kind.num_labels(classes), kind.num_labels(model_classes(config))
    if found != expected:
        named = f" ({', '.join(classes)})" if classes else ""
        raise ConfigError(
            f"{what}: expected {expected} labels as task {table.task.name!r} has{named}, got a "
            f"model with {found}"
        )
    check_class_names(what, config, table)


def check_class_names(what: str, config: PreTrainedConfig, table: Table) -> None:
    """Refuse a model whose classes have names, but not those of the task."""
    kind, classes, names = table.kind, table.label_names, model_classes(config)
    if kind.names_classes and names_differ(names, classes):
        raise ConfigError(
            f"{what}: expected the task's labels ({', '.join(classes)}) in any order, got "
            f"{', '.join(names)}; set tasks[{table.task.name}].label_names to the names that the "
            "model has, in the order of the data's numbers"
        )


def order_of(config: PreTrainedConfig, table: Table) -> tuple[int, ...] | None:
    """Return a model's number of each of the task's classes.

    Returns:
        None where they are the task's, or can't be told by names.
    """
    if not table.kind.names_classes:
        return None
    order = class_order(model_classes(config), table.label_names)
    return None if order == tuple(range(len(table.label_names))) else order


def is_unnamed(config: PreTrainedConfig, table: Table) -> bool:
    """Return whether a model has no names that say which of its classes is which.

    The order is then taken to be the task's, and tried on labelled rows: also the job's
    `label_names` may be in another order.
    """
    return (
        table.kind.names_classes and class_order(model_classes(config), table.label_names) is None
    )


def assumed_order(what: str, table: Table) -> str:
    """Return the warning about a model without names for classes that were sorted."""
    return (
        f"{what}: no names say which of its classes is which; they are taken to be in the sorted "
        f"order of the labels ({', '.join(table.label_names)}); set "
        f"tasks[{table.task.name}].label_names to be sure"
    )


def _check_length(what: str, config: PreTrainedConfig, task: Task, kind: Kind) -> None:
    if enough_positions(config, task.max_length):
        return
    most = most_positions(meta_model(kind.model_class, config, what))
    trained = trained_positions(config)
    if most is not None and task.max_length > most:
        raise ConfigError(
            f"tasks[{task.name}].max_length: expected at most {most}, the positions of the model "
            f"of {what}, got {task.max_length}"
        )
    if most is None and trained is not None and task.max_length > trained:
        _log.warning(
            "tasks[%s].max_length: %d tokens are more than the %d that the model of %s was made "
            "for (max_position_embeddings); its positions need no table, so it reads them",
            task.name,
            task.max_length,
            trained,
            what,
        )
