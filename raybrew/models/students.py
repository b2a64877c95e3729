"""Builds students of one task or of several, and the folders in which they are saved."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from raybrew.config import Student, Teacher
from raybrew.config.job import is_model_path
from raybrew.errors import CheckpointError, ConfigError
from raybrew.models.class_order import arrange_head, model_classes, names_differ
from raybrew.models.inputs import check_runs, check_vocabulary, fit_tokenizer
from raybrew.models.layers import layers_config, model_from_layers, weight_origins
from raybrew.models.pretrained import (
    ModelSource,
    describe_names,
    load_model,
    meta_model,
    own_generator,
    random_model,
)
from raybrew.models.student_configs import changed_config, check_preset, preset_config
from raybrew.models.trainable import check_trainable, limit_trainable
from raybrew.tasks import TaskType
from raybrew.tasks.task_type import CustomModelClass

# The student: where its configuration, its tokenizer and its first weights come from.
#
#     student_config   configurations and tokenizers only: every check that needs no weights
#          │
#     build_student ── config       random weights; so has `preset`, a named configuration
#                   ├─ model        pretrained weights, a new head where sizes or classes differ
#                   └─ layers_from  chosen layers of a teacher, with its embeddings, pooler and head
#
# Whatever is random is drawn from a generator of its own, seeded with `seed`: each process builds
# the same bits, and the global generators stay where they were.
#
# A student of several tasks is one trunk, and a model of transformers for each task around it:
#
#     model of mr    trunk ──► pooler ──► classifier (2)
#     model of ner     │└────► dropout ─► classifier (9)
#     model of trec    └─────► pooler ──► classifier (6)
#
# Each task's model is a whole model of its own task type, whose base model is the same object as
# the others': what reads a single-task student, such as an adaptor or a hook, reads it as well.

_log = logging.getLogger(__name__)

Teachers = Mapping[str, Teacher]


@dataclass(frozen=True)
class Head:
    """What a task asks of the student.

    Args:
        task: the job's name of it.
        task_type: of the task.
        label_names: classes, in the order of the logits.
    """

    task: str
    task_type: TaskType
    label_names: tuple[str, ...]

    @property
    def num_labels(self) -> int:
        """Logits of a row."""
        return self.task_type.num_labels(self.label_names)


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
        classes = sorted({type(trunk).__name__ for trunk in trunks})
        if len(classes) > 1:
            raise ConfigError(
                f"student: expected one kind of trunk for all tasks, got {', '.join(classes)}"
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


def student_config(
    student: Student, heads: Sequence[Head], teachers: Teachers, what: str = "student"
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Work out the student's configuration and tokenizer, and check all that needs no weights.

    Args:
        student: The job's section.
        heads: One a task.
        teachers: The job's teachers by name, in the job's order; empty without teachers.
        what: Name of the section in the job, for messages.

    Returns:
        The configuration of the first task's model with the task's labels, and the tokenizer.

    Raises:
        ConfigError: A path, key, layer or pattern is wrong, or they make no model that runs.
    """
    if len(heads) > 1 and student.architecture is not None:
        raise ConfigError(
            f"{what}.architecture: expected it left out for several tasks, each of which has the "
            "head of its kind on the shared trunk"
        )
    origin = _Origin(student, teachers, what)
    found = [origin.configuration(head) for head in heads]
    pairs = list(zip(heads, found, strict=True))
    models = {head.task: origin.check_weights(head, config) for head, (config, _) in pairs}
    check_trainable(_one_model(models), student, what)
    for head, (config, tokenizer) in pairs:
        check_runs(head.task_type.model_class, config, tokenizer, what)
    return found[0]


def build_student(
    student: Student,
    heads: Sequence[Head],
    teachers: Teachers,
    *,
    seed: int,
    what: str = "student",
) -> tuple[PreTrainedModel | MultiTaskStudent, PreTrainedTokenizerBase]:
    """Build the student: float32, on the CPU, in training mode, frozen as the job says.

    Args:
        student: The job's section.
        heads: One a task.
        teachers: The job's teachers by name, in the job's order; empty without teachers.
        seed: Seeds whatever weights are random; the same seed gives the same bits. Each head draws
            from a generator of its own.
        what: Name of the section in the job, for messages.

    Returns:
        The model and its tokenizer.

    Raises:
        ConfigError: As `student_config`, or weights are missing or don't fit.
    """
    origin = _Origin(student, teachers, what)
    found = [origin.configuration(head) for head in heads]
    models: dict[str, PreTrainedModel] = {}
    for number, (head, (config, _)) in enumerate(zip(heads, found, strict=True)):
        with own_generator(seed + number):
            models[head.task] = origin.build(head, config)
            if len(heads) == 1:
                limit_trainable(models[head.task], student, what)
        if len(heads) > 1 and origin.is_of_another_task(head):
            _draw_head(models[head.task], head.task_type, seed + number)
    model = _one_model(models)
    if len(heads) > 1:
        with own_generator(seed):
            limit_trainable(model, student, what)
    return model.train(), found[0][1]


def _one_model(models: Mapping[str, PreTrainedModel]) -> PreTrainedModel | MultiTaskStudent:
    return MultiTaskStudent(models) if len(models) > 1 else next(iter(models.values()))


class _Origin:
    """The files that a student's configuration, tokenizer and first weights are read from."""

    def __init__(self, student: Student, teachers: Teachers, what: str):
        self._student, self._teachers, self._what = student, teachers, what
        self._own = None if student.model is None else self._path(student.model, "model")
        self._lender, self._layers = None, tuple[int, ...]()
        if student.layers_from is not None:
            name, layers = student.layers_from
            self._lender, self._layers = self._lender_of(name), tuple(layers)

    def configuration(self, head: Head) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
        """Return the configuration of a task's model, with its labels, and a tokenizer for it."""
        tokenizer, config = self._tokenizer(), self._config(head.task_type)
        names = self._head_names(head)
        if names_differ(names, head.label_names):
            _log.warning(
                "%s: the classes of the head (%s) aren't the task's (%s): it is newly initialised",
                self._what,
                ", ".join(names),
                ", ".join(head.label_names),
            )
        _set_labels(config, head)
        fit_tokenizer(tokenizer, config, self._what, custom=head.task_type.is_custom)
        check_vocabulary(config, tokenizer, self._what, f"see {self._what}.tokenizer_from")
        return config, tokenizer

    def check_weights(self, head: Head, config: PreTrainedConfig) -> PreTrainedModel:
        """Return a task's model without weights, whose preset or layers fit it."""
        model = meta_model(head.task_type.model_class, config, self._what)
        if self._student.preset is not None:
            check_preset(self._student.preset, model, f"{self._what}.preset")
        if self._lender is not None:
            lender = self._lender
            source = meta_model(head.task_type.model_class, lender.config(), lender.field)
            weight_origins(model, source, self._layers, lender, self._what)
        return model

    def build(self, head: Head, config: PreTrainedConfig) -> PreTrainedModel:
        """Return a task's model; what is random is drawn from the CPU's global generator."""
        model_class = head.task_type.model_class
        if self._lender is not None:
            model = model_from_layers(model_class, config, self._lender, self._layers, self._what)
        elif self._own is not None:
            model = _from_weights(model_class, self._own, config)
        else:
            model = random_model(model_class, config)
        if names := self._head_names(head):
            arrange_head(model, model_class, names, head.label_names, self._what)
        return model

    def is_of_another_task(self, head: Head) -> bool:
        """Whether the head comes from a teacher of another task, and only happens to fit."""
        lender = None if self._lender is None else self._teachers.get(self._lender.name)
        return lender is not None and lender.task != head.task

    def _path(self, path: str, field: str) -> ModelSource:
        trust = self._student.trust_remote_code
        return ModelSource(path, f"{self._what}.{field}", trust, path)

    def _lender_of(self, name: str) -> ModelSource:
        """Return the model whose layers the student takes: a teacher, or a path."""
        if name in self._teachers:
            return ModelSource.of_teacher(self._teachers[name])
        if is_model_path(name):
            return self._path(name, "layers_from")
        raise ConfigError(
            f"{self._what}.layers_from: expected a teacher of this job "
            f"({', '.join(self._teachers) or 'it has none'}), got {name!r}"
        )

    def _base(self) -> ModelSource:
        """Return what `tokenizer_from` names, or the first teacher."""
        name = self._student.tokenizer_from or next(iter(self._teachers), None)
        if name is not None and name in self._teachers:
            return ModelSource.of_teacher(self._teachers[name])
        if name is not None:
            return self._path(name, "tokenizer_from")
        what = self._what
        raise ConfigError(
            f"{what}.tokenizer_from: expected a folder or hub id, as a job without a teacher that "
            f"is a model has no other base for {what}.config or {what}.preset, got none"
        )

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self._student.tokenizer_from is None:
            if self._student.model is not None:
                hint = f"model (or set {self._what}.tokenizer_from)"
                return self._path(self._student.model, hint).tokenizer()
            if self._lender is not None:
                return self._lender.tokenizer()
        return self._base().tokenizer()

    def _config(self, task_type: TaskType) -> PreTrainedConfig:
        """Return the configuration, without the task's labels."""
        student, what = self._student, self._what

        def build(config: PreTrainedConfig) -> nn.Module:
            return meta_model(task_type.model_class, config, what)

        if student.config is not None or student.preset is not None:
            base = self._base().config()
            if isinstance(task_type.model_class, CustomModelClass):
                base = task_type.model_class.config_beside(base)
            if student.preset is not None:
                return preset_config(student.preset, base, f"{what}.preset", build)
            return changed_config(base, student.config or {}, f"{what}.config", build)
        own = None if self._own is None else self._own.config()
        if self._lender is not None:
            return layers_config(self._lender, own, self._layers, what, build)
        assert own is not None, "config.Student gives one of the three"
        return own

    def _head_names(self, head: Head) -> tuple[str, ...]:
        """Return the classes of the head that comes along with weights; none where none does."""
        source = self._lender or self._own
        if source is None or not head.task_type.names_classes:
            return ()
        names = model_classes(source.config())
        return names if len(names) == head.num_labels else ()


def _set_labels(config: PreTrainedConfig, head: Head) -> None:
    config.dtype = torch.float32
    if not head.task_type.has_labels:
        return
    config.num_labels = head.num_labels
    config.id2label = dict(enumerate(head.label_names))
    config.label2id = {name: index for index, name in enumerate(head.label_names)}
    config.problem_type = head.task_type.problem_type


def _from_weights(
    model_class: Any, source: ModelSource, config: PreTrainedConfig
) -> PreTrainedModel:
    model, info = load_model(model_class, source.path, source.field, config)
    body = f"{model.base_model_prefix}."
    for name, got, expected in sorted(info["mismatched_keys"]):
        if name.startswith(body):
            raise ConfigError(
                f"{source.field}: expected {name} of shape {tuple(expected)}, as its configuration "
                f"says, got {tuple(got)}"
            )
    missing = set(info["missing_keys"])
    # A user's class may have no name for its trunk.
    body_names = {name for name in model.state_dict() if name.startswith(body) or body == "."}
    if body_names <= missing:
        raise ConfigError(
            f"{source.field}: expected weights of a {config.model_type} model, got a file in which "
            f"none of its weights is found ({describe_names(info['unexpected_keys'], 3)}, …)"
        )
    head = {name for name in missing if not name.startswith(body)}
    head |= {name for name, *_ in info["mismatched_keys"]}
    if head:
        _log.info("%s: newly initialised head: %s", source.field, describe_names(head))
    if missing - head:
        _log.warning("%s: newly initialised: %s", source.field, describe_names(missing - head))
    return model


def _draw_head(model: PreTrainedModel, task_type: TaskType, seed: int) -> None:
    """Draw the weights around the trunk."""
    with own_generator(seed):
        drawn = random_model(task_type.model_class, model.config).state_dict()
    body = f"{model.base_model_prefix}."
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not name.startswith(body):
                tensor.copy_(drawn[name])


# The student on disk, as transformers loads it.
#
#     one task        student/         the model of the task, with its tokenizer     several tasks
# student/         the trunk alone, with the tokenizer                     student/<task>/  the
# whole model of the task, trunk and head, with the tokenizer
# student/tasks.json  the tasks, in the job's order
#
# Every folder stands by itself: it can be moved, uploaded or loaded without the others, which is
# worth the trunk's repeated bytes.

_TASKS = "tasks.json"
_TRUNK = "trunk."


def save_student(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a student into an empty folder.

    Args:
        model: a model of transformers, or a `MultiTaskStudent`.
        tokenizer: saved with each model.
        folder: where.
        weights: of an earlier moment, by the names of the model's state; the model's own if None.
    """
    state = model.state_dict() if weights is None else weights
    for part, place, prefix in _parts(model, folder):
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        part.save_pretrained(place, state_dict=own)
        tokenizer.save_pretrained(str(place))
    if isinstance(model, MultiTaskStudent):
        (folder / _TASKS).write_text(json.dumps({"tasks": list(model.names)}) + "\n")


def load_student(model: nn.Module, folder: Path) -> None:
    """Read the weights that `save_student` wrote back into the same student.

    Raises:
        CheckpointError: weights of another model.
        OSError: a file is missing.
    """
    for part, place, prefix in _parts(model, folder):
        if prefix == _TRUNK:  # also in the models of the tasks
            continue
        missing, unexpected = part.load_state_dict(
            load_file(place / "model.safetensors"), strict=False
        )
        lacking = sorted(set(missing) - set(part.all_tied_weights_keys or {}))
        if lacking or unexpected:
            raise CheckpointError(
                f"checkpoint {place}: expected this model's weights, got {unexpected or 'none'} "
                f"besides and {lacking or 'none'} missing"
            )


def _parts(model: nn.Module, folder: Path) -> Iterator[tuple[PreTrainedModel, Path, str]]:
    """Yield each model that is saved, its folder, and how the names of its weights begin."""
    if isinstance(model, MultiTaskStudent):
        assert isinstance(model.trunk, PreTrainedModel), type(model.trunk)
        yield model.trunk, folder, _TRUNK
        for number, name in enumerate(model.names):
            yield model.model_of(number), folder / name, f"tasks.{number}."
    else:
        assert isinstance(model, PreTrainedModel), type(model)
        yield model, folder, ""


def task_folders(student: Path) -> dict[str, Path]:
    """Return the folder of each task's model; empty where there is one task.

    Raises:
        ConfigError: tasks.json is no list of tasks.
    """
    path = student / _TASKS
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected the tasks of a student, got: {error}") from None
    names = found.get("tasks") if isinstance(found, dict) else None
    if not (isinstance(names, list) and names and all(isinstance(n, str) and n for n in names)):
        raise ConfigError(f'{path}: expected {{"tasks": [names]}}, got {str(found)[:80]}')
    return {name: student / name for name in names}
