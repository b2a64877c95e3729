"""Builds students of one task or of several: configuration, tokenizer and first weights."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from raybrew.config import Student, Teacher
from raybrew.errors import ConfigError
from raybrew.models.class_order import arrange_head, model_classes, names_differ
from raybrew.models.inputs import check_runs, fit_tokenizer
from raybrew.models.layers import layers_config, model_from_layers, weight_origins
from raybrew.models.pretrained import (
    LayerSource,
    ModelSource,
    describe_names,
    field_of,
    load_model,
    meta_model,
    own_generator,
    random_model,
    runs_own_code,
)
from raybrew.models.student_configs import changed_config, check_preset, preset_config
from raybrew.models.trainable import check_trainable, limit_trainable
from raybrew.tasks import TASK_TYPES
from raybrew.tasks.causal_lm import check_vocabulary
from raybrew.tasks.task_type import CustomModelClass, TaskType

# The student: where its configuration, its tokenizer and its first weights come from.
#
#     student_config   configurations and tokenizers only: every check that needs no weights
#          │
#     build_student ── config       random weights; so has `preset`, a named configuration
#                   ├─ model        pretrained weights, a fresh head where sizes or classes differ
#                   └─ layers_from  chosen layers of a teacher, with its embeddings, pooler and head
#
# Whatever is random is drawn from a generator of its own, seeded with `seed`: each process builds
# the same bits, and the global generators stay where they were.

DEFAULT_KIND = TASK_TYPES["sequence-classification"]

_log = logging.getLogger(__name__)


def student_config(
    student: Student,
    *,
    num_labels: int,
    label_names: Sequence[str] | None,
    teachers: Mapping[str, Teacher],
    what: str = "student",
    kind: TaskType = DEFAULT_KIND,
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Work out the student's configuration and tokenizer, and check all that needs no weights.

    Args:
        student: The job's section.
        num_labels: Classes of the task.
        label_names: Their names in the order of the logits; LABEL_0, … if None.
        teachers: The job's teachers by name, in the job's order; empty without teachers.
        what: Name of the section in the job, for messages.
        kind: Of the task; its head is the student's.

    Returns:
        The configuration with the task's labels, and the tokenizer.

    Raises:
        ConfigError: A path, key, layer or pattern is wrong, or they make no model.
    """
    teachers = _with_layer_source(student, teachers, what)
    tokenizer = _tokenizer(student, teachers, what)
    config = _base_config(student, teachers, what, kind)
    names = _head_names(student, num_labels, label_names, teachers, kind, what)
    if names and label_names and names_differ(names, label_names):
        _log.warning(
            "%s: the classes of the head (%s) aren't the task's (%s): it is newly initialised",
            what,
            ", ".join(names),
            ", ".join(label_names),
        )
    _set_labels(config, num_labels, label_names, kind, what)
    own_code = isinstance(kind.model_class, CustomModelClass) or runs_own_code(config)
    fit_tokenizer(tokenizer, config, what, own_code=own_code)
    check_vocabulary(config, tokenizer, what, f"see {what}.tokenizer_from")
    model = meta_model(kind.model_class, config, what)
    if student.preset is not None:
        check_preset(student.preset, model, f"{what}.preset")
    if student.layers_from is not None:
        name, layers = student.layers_from
        field = field_of(teachers[name])
        teacher = meta_model(
            kind.model_class, ModelSource.of_teacher(teachers[name]).config(), field
        )
        weight_origins(model, teacher, layers, teacher_name=name, what=what)
    check_trainable(model, student, what)
    return config, tokenizer


def build_student(
    student: Student,
    *,
    num_labels: int,
    label_names: Sequence[str] | None,
    seed: int,
    teachers: Mapping[str, Teacher],
    what: str = "student",
    kind: TaskType = DEFAULT_KIND,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Build the student: float32, on the CPU, in training mode, frozen as the job says.

    Args:
        student: The job's section.
        num_labels: Classes of the task.
        label_names: Their names in the order of the logits; LABEL_0, … if None.
        seed: Seeds whatever weights are random; the same seed gives the same bits.
        teachers: The job's teachers by name, in the job's order; empty without teachers.
        what: Name of the section in the job, for messages.
        kind: Of the task; its head is the student's.

    Returns:
        The model and its tokenizer.

    Raises:
        ConfigError: As `student_config`, or weights are missing or don't fit.
    """
    teachers = _with_layer_source(student, teachers, what)
    config, tokenizer = student_config(
        student,
        num_labels=num_labels,
        label_names=label_names,
        teachers=teachers,
        what=what,
        kind=kind,
    )
    with own_generator(seed):
        if student.layers_from is not None:
            name, layers = student.layers_from
            model = model_from_layers(kind.model_class, config, teachers[name], layers, what)
        elif student.model is not None:
            model = _from_weights(kind, student.model, config, what)
        else:
            model = random_model(kind.model_class, config)
        names = _head_names(student, num_labels, label_names, teachers, kind, what)
        if names and label_names:
            arrange_head(model, kind.model_class, names, label_names, what)
        limit_trainable(model, student, what)
    return model.train(), tokenizer


def _head_names(
    student: Student,
    num_labels: int,
    label_names: Sequence[str] | None,
    teachers: Mapping[str, Teacher],
    kind: TaskType,
    what: str,
) -> tuple[str, ...]:
    """Return the classes of the head that comes along with weights; none where none does."""
    if student.layers_from is not None:
        source = ModelSource.of_teacher(teachers[student.layers_from[0]])
    elif student.model is not None:
        source = ModelSource(student.model, f"{what}.model", student.trust_remote_code)
    else:
        return ()
    names = model_classes(source.config()) if kind.names_classes else ()
    return names if len(names) == num_labels else ()


def _with_layer_source(
    student: Student, teachers: Mapping[str, Teacher], what: str
) -> Mapping[str, Teacher]:
    """Let a model that isn't a teacher, named by its path, lend its layers as a teacher does."""
    source = student.layers_from[0] if student.layers_from else ""
    if "/" not in source or source in teachers:
        return teachers
    lender = LayerSource.model_construct(
        name=source,
        model=source,
        trust_remote_code=student.trust_remote_code,
        field=f"{what}.layers_from",
    )
    return {**teachers, source: lender}


def _tokenizer(
    student: Student, teachers: Mapping[str, Teacher], what: str
) -> PreTrainedTokenizerBase:
    if student.tokenizer_from is not None:
        return _source(student, teachers, what).tokenizer()
    if student.model is not None:
        field = f"{what}.model (or set {what}.tokenizer_from)"
        return ModelSource(student.model, field, student.trust_remote_code).tokenizer()
    if student.layers_from is not None:
        name = _known_teacher(student.layers_from[0], teachers, what)
        return ModelSource.of_teacher(teachers[name]).tokenizer()
    return _source(student, teachers, what).tokenizer()


def _base_config(
    student: Student, teachers: Mapping[str, Teacher], what: str, kind: TaskType
) -> PreTrainedConfig:
    def build(config: PreTrainedConfig) -> nn.Module:
        return meta_model(kind.model_class, config, what)

    if student.config is not None or student.preset is not None:
        base = _source(student, teachers, what).config()
        if isinstance(kind.model_class, CustomModelClass):
            base = kind.model_class.config_beside(base)
        if student.preset is not None:
            return preset_config(student.preset, base, f"{what}.preset", build)
        return changed_config(base, student.config or {}, f"{what}.config", build)
    own = None
    if student.model is not None:
        own = ModelSource(student.model, f"{what}.model", student.trust_remote_code).config()
    if student.layers_from is not None:
        name, layers = student.layers_from
        _known_teacher(name, teachers, what)
        return layers_config(teachers[name], own, tuple(layers), what, build)
    assert own is not None, "config.Student gives one of the three"
    return own


def _set_labels(
    config: PreTrainedConfig,
    num_labels: int,
    label_names: Sequence[str] | None,
    kind: TaskType,
    what: str,
) -> None:
    config.dtype = torch.float32
    if not kind.has_labels:
        return
    names = list(label_names or (f"LABEL_{index}" for index in range(num_labels)))
    if len(names) != num_labels:
        raise ConfigError(f"{what}: expected {num_labels} label names, got {len(names)}")
    config.num_labels = num_labels
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = kind.problem_type


def _from_weights(
    kind: TaskType, path: str, config: PreTrainedConfig, what: str
) -> PreTrainedModel:
    field = f"{what}.model"
    model, info = load_model(kind.model_class, path, field, config)
    body = f"{model.base_model_prefix}."
    for name, got, expected in sorted(info["mismatched_keys"]):
        if name.startswith(body):
            raise ConfigError(
                f"{field}: expected {name} of shape {tuple(expected)}, as its configuration says, "
                f"got {tuple(got)}"
            )
    missing = set(info["missing_keys"])
    # A user's class may have no name for its trunk.
    body_names = {name for name in model.state_dict() if name.startswith(body) or body == "."}
    if body_names <= missing:
        raise ConfigError(
            f"{field}: expected weights of a {config.model_type} model, got a file in which none "
            f"of its weights is found ({describe_names(info['unexpected_keys'], 3)}, …)"
        )
    head = {name for name in missing if not name.startswith(body)}
    head |= {name for name, *_ in info["mismatched_keys"]}
    if head:
        _log.info("%s: newly initialised head: %s", field, describe_names(head))
    if missing - head:
        _log.warning("%s: newly initialised: %s", field, describe_names(missing - head))
    return model


def _known_teacher(name: str, teachers: Mapping[str, Teacher], what: str) -> str:
    if name not in teachers:
        raise ConfigError(
            f"{what}.layers_from: expected a teacher of this job "
            f"({', '.join(teachers) or 'it has none'}), got {name!r}"
        )
    return name


def _source(student: Student, teachers: Mapping[str, Teacher], what: str) -> ModelSource:
    """Return what `tokenizer_from` names, or the first teacher."""
    name = student.tokenizer_from
    if name is not None and name not in teachers:
        return ModelSource(name, f"{what}.tokenizer_from", student.trust_remote_code)
    for each, teacher in teachers.items():
        if name in (None, each):
            return ModelSource.of_teacher(teacher)
    raise ConfigError(
        f"{what}.tokenizer_from: expected a folder or hub id, as a job without a teacher that is a "
        f"model has no other base for {what}.config or {what}.preset, got none"
    )


# A student of several tasks: one trunk, and a model of transformers for each task around it.
#
#     model of mr    trunk ──► pooler ──► classifier (2)
#     model of ner     │└────► dropout ─► classifier (9)
#     model of trec    └─────► pooler ──► classifier (6)
#
# Each task's model is a whole model of its own kind, whose base model is the same object as the
# others': what reads a single-task student, such as an adaptor or a hook, reads it as well.


@dataclass(frozen=True)
class Head:
    """What a task asks of the student.

    Args:
        task: the job's name of it.
        kind: of the task.
        label_names: classes, in the order of the logits.
        num_labels: logits of a row.
    """

    task: str
    kind: TaskType
    label_names: tuple[str, ...]
    num_labels: int

    @classmethod
    def of(cls, task: str, kind: TaskType, label_names: tuple[str, ...]) -> "Head":
        """Return the head of a task."""
        return cls(task, kind, label_names, kind.num_labels(label_names))


class MultiTaskStudent(nn.Module):
    """Models of several tasks around one trunk.

    Args:
        models: by task, in the job's order; the largest of their trunks becomes that of all.

    Raises:
        ConfigError: their trunks are of different architectures.
    """

    def __init__(self, models: Mapping[str, PreTrainedModel]):
        super().__init__()
        trunks = [model.base_model for model in models.values()]
        kinds = sorted({type(trunk).__name__ for trunk in trunks})
        if len(kinds) > 1:
            raise ConfigError(
                f"student: expected one kind of trunk for all tasks, got {', '.join(kinds)}"
            )
        # A pooler that only some of the heads read makes a trunk larger.
        self.trunk: nn.Module = max(trunks, key=lambda trunk: sum(1 for _ in trunk.parameters()))
        for model in models.values():
            setattr(model, model.base_model_prefix, self.trunk)
            model.tie_weights()
        self.names = tuple(models)
        self.tasks = nn.ModuleList(models.values())

    def model_of(self, task: int) -> PreTrainedModel:
        """Return the model of a task, by its number."""
        model: PreTrainedModel = self.tasks[task]  # type: ignore[assignment]
        return model


def multitask_config(
    student: Student,
    heads: Sequence[Head],
    teachers: Mapping[str, Teacher],
    what: str = "student",
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Work out and check a student of several tasks without weights; see `student_config`.

    Returns:
        The configuration of the first task's model, and the tokenizer.
    """
    if student.architecture is not None:
        raise ConfigError(
            f"{what}.architecture: expected it left out for several tasks, each of which has the "
            "head of its kind on the shared trunk"
        )
    bare = student.model_copy(update={"freeze": (), "lora": None})
    found = [
        student_config(
            bare,
            num_labels=head.num_labels,
            label_names=head.label_names,
            teachers=teachers,
            what=what,
            kind=head.kind,
        )
        for head in heads
    ]
    for head, (config, tokenizer) in zip(heads, found, strict=True):
        check_runs(head.kind.model_class, config, tokenizer, what)
    models = {
        head.task: meta_model(head.kind.model_class, config, what)
        for head, (config, _) in zip(heads, found, strict=True)
    }
    check_trainable(MultiTaskStudent(models), student, what)
    return found[0]


def build_multitask(
    student: Student,
    heads: Sequence[Head],
    *,
    seed: int,
    teachers: Mapping[str, Teacher],
    what: str = "student",
) -> tuple[MultiTaskStudent, PreTrainedTokenizerBase]:
    """Build a student of several tasks; see `build_student`.

    Args:
        student: the job's section.
        heads: one a task.
        seed: of what is random; each head draws from a generator of its own.
        teachers: the job's, by name.
        what: name of the section in the job, for messages.
    """
    bare = student.model_copy(update={"freeze": (), "lora": None})
    built = [
        build_student(
            bare,
            num_labels=head.num_labels,
            label_names=head.label_names,
            seed=seed + number,
            teachers=teachers,
            what=what,
            kind=head.kind,
        )
        for number, head in enumerate(heads)
    ]
    source = teachers.get(student.layers_from[0]) if student.layers_from else None
    for number, (head, (model, _)) in enumerate(zip(heads, built, strict=True)):
        # A head of another task that happens to be of one size says nothing of this one.
        if source is not None and source.task != head.task:
            _draw_head(model, head.kind, seed + number)
    model = MultiTaskStudent({h.task: m for h, (m, _) in zip(heads, built, strict=True)})
    with own_generator(seed):
        limit_trainable(model, student, what)
    return model.train(), built[0][1]


def _draw_head(model: PreTrainedModel, kind: TaskType, seed: int) -> None:
    with own_generator(seed):
        fresh = random_model(kind.model_class, model.config).state_dict()
    body = f"{model.base_model_prefix}."
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not name.startswith(body):
                tensor.copy_(fresh[name])
