"""Whether the names, models, data and objective of a job fit each other.

No weights are loaded.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from raybrew.config import DistillJob, MatchPreset, Student, Task, Teacher, TrainJob
from raybrew.data.agreement import encoding_difference
from raybrew.data.encoding import same_vocabulary
from raybrew.errors import ConfigError, import_callable
from raybrew.losses.kd import make_kd_loss
from raybrew.losses.mixture import make_mixture
from raybrew.losses.schedules import make_temperature_scheduler, make_weight_schedule
from raybrew.matches.capture import Side
from raybrew.matches.plan import TaskMatch, check_adaptor, check_modules, geometry_of, plan_matches
from raybrew.matches.presets import MATCH_FAMILIES, resolve_matches
from raybrew.matches.spec import CustomMatch, MatchSpec
from raybrew.models.class_order import check_outputs
from raybrew.models.inputs import (
    check_vocabulary,
    enough_positions,
    fit_tokenizer,
    most_positions,
    trained_positions,
)
from raybrew.models.pretrained import ModelSource, meta_model
from raybrew.models.students import Head, student_config
from raybrew.objective import Objective
from raybrew.tasks import TASK_TYPES, adaptor_of, task_type_of
from raybrew.tasks.task_data import TaskData
from raybrew.tasks.task_type import TaskType

_log = logging.getLogger(__name__)

# Names and import paths; every mistake names its field.


def check_objective_names(job: DistillJob, task: Task) -> None:
    """Refuse methods and options of a task's objective that don't exist.

    Raises:
        ConfigError: names the field, the task's own where the task changes it.
    """
    config = job.objective_of(task.name)
    builders: dict[str, Callable[[str, dict[str, Any]], object]] = {
        "kd_loss": lambda name, options: make_kd_loss(name, options, scale_t2=config.scale_t2),
        "mixture": make_mixture,
        "temperature_scheduler": make_temperature_scheduler,
        "kd_loss_weight_scheduler": make_weight_schedule,
        "hard_label_weight_scheduler": make_weight_schedule,
    }
    for name, build in builders.items():
        given, options = getattr(config, name), getattr(config, f"{name}_options")
        given = task_type_of(task.kind).kd_loss if given is None else given
        _with_field(_field(task, name, f"{name}_options"), build, given, options)
    for number, match in enumerate(config.matches):
        name = match.preset if isinstance(match, MatchPreset) else match
        # The others need the sizes of the models.
        if isinstance(name, str) and name not in MATCH_FAMILIES:
            _with_field(f"{_field(task, 'matches')}[{number}]", resolve_matches, name)


def check_adaptor_paths(job: DistillJob | TrainJob) -> None:
    """Refuse import paths of adaptors that can't be imported."""
    given = {f"tasks[{task.name}]": task.adaptor for task in job.tasks}
    if isinstance(job, TrainJob):
        given["model"] = job.model.adaptor
    else:
        given |= {f"teachers[{teacher.name}]": teacher.adaptor for teacher in job.teachers}
        given["student"] = job.student.adaptor
    for section, adaptor in given.items():
        if adaptor is not None:
            import_callable(adaptor, f"{section}.adaptor: adaptor")


def check_architectures(job: DistillJob | TrainJob) -> None:
    """Refuse classes of models that can't be imported, or aren't such classes."""
    if isinstance(job, TrainJob):
        student, what = job.model, "model"
    else:
        student, what = job.student, "student"
        tasks = {task.name: task for task in job.tasks}
        for teacher in job.hosts().values():
            field = f"teachers[{teacher.name}].architecture"
            # Registers the configurations of the user's models, before one is read.
            task_type_of(tasks[teacher.task].kind, teacher.architecture, field)
    for task in job.tasks:
        task_type_of(task.kind, student.architecture, f"{what}.architecture")


def _field(task: Task, *names: str) -> str:
    """Return the field of the first name: the task's, if the task sets any of them."""
    own = task.distillation is not None and not task.distillation.model_fields_set.isdisjoint(names)
    return f"{f'tasks[{task.name}].' if own else ''}distillation.{names[0]}"


def _with_field(field: str, build: Callable[..., object], *given: Any) -> None:
    try:
        build(*given)
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from error


# Student, teachers, data and objective against each other.


@dataclass(frozen=True)
class ModelMetadata:
    """What the files of a model tell without its weights."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase


def check_augmentation(task: Task) -> None:
    """Refuse changed copies of rows that can't be changed."""
    if task.augmentation is not None and not task_type_of(task.kind).augments:
        raise ConfigError(
            f"tasks[{task.name}].augmentation: expected a task type whose rows may be changed "
            f"({', '.join(name for name, kind in TASK_TYPES.items() if kind.augments)}), got "
            f"{task.kind!r}; leave the augmentation out"
        )


def check_columns(task: Task, teachers: Sequence[Teacher]) -> None:
    """Refuse columns of logits where no column can stand in for a teacher."""
    for teacher in teachers:
        if teacher.logits is None:
            continue
        what = f"teachers[{teacher.name}].logits"
        if not task_type_of(task.kind).takes_column:
            raise ConfigError(
                f"{what}: expected a teacher of a task type whose logits are those of rows or "
                f"words ({', '.join(n for n, kind in TASK_TYPES.items() if kind.takes_column)}), "
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


def check_labels(objective: Objective, data: TaskData) -> None:
    """Refuse an objective that needs what no row has."""
    if objective.needs_route and data.task.teacher_column is None:
        raise ConfigError(
            f"distillation.mixture: to route rows to teachers, expected "
            f"tasks[{data.task.name}].teacher_column to name the column with each row's teacher, "
            "got none"
        )
    # Unlabelled rows are fine for all that can do without a label, row by row.
    if objective.needs_labels and not data.kind.num_labelled(data.train):
        raise ConfigError(
            f"distillation: {', '.join(objective.needs_labels)} needs labels, but no row of "
            f"tasks[{data.task.name}].train has one"
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


def read_teacher(teacher: Teacher) -> ModelMetadata:
    """Read a teacher's configuration and tokenizer."""
    source = ModelSource.of_teacher(teacher)
    config, tokenizer = source.config(), source.tokenizer()
    fit_tokenizer(tokenizer, config, source.field, custom=teacher.architecture is not None)
    return ModelMetadata(config, tokenizer)


def check_student(
    student: Student,
    data: Sequence[TaskData],
    hosts: Mapping[str, Teacher],
    what: str = "student",
) -> ModelMetadata:
    """Check the student, and return its configuration and tokenizer."""
    kinds = [task_type_of(d.task.kind, student.architecture, f"{what}.architecture") for d in data]
    heads = [
        Head(each.task.name, kind, each.label_names) for each, kind in zip(data, kinds, strict=True)
    ]
    config, tokenizer = student_config(student, heads, hosts, what)
    for each, kind in zip(data, kinds, strict=True):
        _check_tokenizer(what, tokenizer, each)
        _check_length(what, config, each.task, kind)
    return ModelMetadata(config, tokenizer)


def check_teacher(
    teacher: Teacher,
    model: ModelMetadata,
    data: TaskData,
    student_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Refuse a teacher of other classes, another vocabulary or encoding, or too few positions."""
    what = f"teachers[{teacher.name}]"
    check_outputs(f"{what}.model", model.config, data)
    check_vocabulary(model.config, model.tokenizer, f"{what}.model")
    if teacher.inputs == "own" and not data.kind.own_inputs:
        raise ConfigError(
            f"{what}.inputs: expected `shared` for {data.task.kind}, whose classes are the "
            "vocabulary's tokens, got `own`"
        )
    if teacher.inputs == "own":
        _check_tokenizer(what, model.tokenizer, data)
    else:
        _check_shared(what, teacher.name, model, data, student_tokenizer)
    kind = task_type_of(data.task.kind, teacher.architecture, f"{what}.architecture")
    _check_length(what, model.config, data.task, kind)


def _check_shared(
    what: str, name: str, model: ModelMetadata, data: TaskData, student: PreTrainedTokenizerBase
) -> None:
    """Refuse a teacher that can't read the student's token ids."""
    remedy = "set `inputs: own` to encode each example for it by its own tokenizer"
    if not data.kind.own_inputs:
        remedy = f"set student.tokenizer_from to {name}, as {data.task.kind} needs one tokenizer"
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
        data.train.texts,
        data.train.pairs,
        data.task.max_length,
        # A model without them, DistilBERT's, passes over the student's.
        segments=makes_segments or hasattr(model.config, "type_vocab_size"),
    )
    if difference is not None:
        raise ConfigError(
            f"{what}.inputs: expected a teacher that reads texts as the student does, got "
            f"{difference}; {remedy}"
        )


def _check_tokenizer(what: str, tokenizer: PreTrainedTokenizerBase, data: TaskData) -> None:
    if data.kind.needs_offsets and not tokenizer.is_fast:
        raise ConfigError(
            f"{what}: expected a fast tokenizer, which finds each token in the text, as "
            f"{data.task.kind} needs, got {type(tokenizer).__name__}"
        )


def _check_length(what: str, config: PreTrainedConfig, task: Task, kind: TaskType) -> None:
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


def task_matches(
    job: DistillJob,
    task: Task,
    models: Mapping[str, ModelMetadata],
    student: PreTrainedConfig,
) -> tuple[TaskMatch, ...]:
    """Spell out the matches of a task, and check that its models and adaptors give them.

    Args:
        job: whose task it is.
        task: which.
        models: of the teachers that are models, by name.
        student: configuration of the student.

    Raises:
        ConfigError: names the match.
    """
    teachers = {
        teacher.name: geometry_of(
            models[teacher.name].config, same_tokens=teacher.inputs == "shared"
        )
        if teacher.name in models
        else None
        for teacher in job.teachers_of(task.name)
    }
    planned = plan_matches(
        job.objective_of(task.name).matches,
        task.name,
        teachers,
        [teacher.name for teacher in job.teachers],
        geometry_of(student),
        job.labels.dtype,
    )
    for teacher in job.teachers_of(task.name):
        if teacher.name in models:
            mine = [match.spec for match in planned if match.teacher == teacher.name]
            _check_model(job, task, mine, models[teacher.name].config, teacher)
    every = [match.spec for match in planned]
    _check_model(job, task, every, student, job.student)
    return planned


def _check_model(
    job: DistillJob,
    task: Task,
    matches: Sequence[MatchSpec | CustomMatch],
    config: PreTrainedConfig,
    whose: Teacher | Student,
) -> None:
    side: Side = "teacher" if isinstance(whose, Teacher) else "student"
    kind = task_type_of(task.kind, whose.architecture)
    # A student of several tasks isn't a model of one of its kinds.
    if side == "teacher" or len(job.tasks) == 1:
        check_modules(matches, kind.model_class, config, side)
    adaptor = whose.adaptor or task.adaptor
    if adaptor is None and whose.architecture is None:
        return
    layered = [match for match in matches if isinstance(match, MatchSpec)]
    check_adaptor(
        layered, adaptor_of(task.kind, adaptor), kind, config, side, config.num_labels or 1
    )
