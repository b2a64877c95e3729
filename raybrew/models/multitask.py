"""A student of several tasks: one trunk, and a model of transformers for each task around it.

    model of mr    trunk ──► pooler ──► classifier (2)
    model of ner     │└────► dropout ─► classifier (9)
    model of trec    └─────► pooler ──► classifier (6)

Each task's model is a whole model of its own kind, whose base model is the same object as the
others': what reads a single-task student, such as an adaptor or a hook, reads it as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from raybrew.config import Student, Teacher
from raybrew.errors import ConfigError
from raybrew.kinds import Kind
from raybrew.models.learning import check_learning, limit_learning
from raybrew.models.pretrained import meta_model, own_generator, random_model
from raybrew.models.students import build_student, student_config
from raybrew.models.trial import check_runs

__all__ = ["Head", "MultiTaskStudent", "build_multitask", "multitask_config"]


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
    kind: Kind
    label_names: tuple[str, ...]
    num_labels: int

    @classmethod
    def of(cls, task: str, kind: Kind, label_names: tuple[str, ...]) -> "Head":
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
    check_learning(MultiTaskStudent(models), student, what)
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
        limit_learning(model, student, what)
    return model.train(), built[0][1]


def _draw_head(model: PreTrainedModel, kind: Kind, seed: int) -> None:
    with own_generator(seed):
        fresh = random_model(kind.model_class, model.config).state_dict()
    body = f"{model.base_model_prefix}."
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not name.startswith(body):
                tensor.copy_(fresh[name])
