"""Task types: one file each with everything that is its own.

    rows of the data ──read──► Rows ──encode──► EncodedSplit ──► batches ──► model_class ──► adaptor
                                                                                               │
      metrics ◄──metrics── predictions ◄──predict── rows of logits ◄──layout (objective/rows)──┘
                                                        └──► hard_loss, kd_loss

The engine around them knows layouts (one row of logits an example, a token, or a set of positions)
and no task type.
"""

from collections.abc import Callable
from typing import Any

from raybrew.errors import import_callable
from raybrew.tasks.causal_lm import CausalLM
from raybrew.tasks.multi_label import MultiLabel
from raybrew.tasks.question_answering import QuestionAnswering
from raybrew.tasks.regression import Regression
from raybrew.tasks.sequence_classification import SequenceClassification
from raybrew.tasks.task_type import Adaptor, Layout, TaskType, custom_model_class
from raybrew.tasks.token_classification import TokenClassification

__all__ = ["TASK_TYPES", "Layout", "TaskType", "adaptor_of", "task_type_of"]

TASK_TYPES: dict[str, TaskType] = {
    task_type.name: task_type
    for task_type in (
        SequenceClassification(),
        MultiLabel(),
        Regression(),
        TokenClassification(),
        QuestionAnswering(),
        CausalLM(),
    )
}
"""By the name that `Task.kind` has for it."""


def task_type_of(
    name: str,
    architecture: Callable[..., Any] | str | None = None,
    what: str = "architecture",
) -> TaskType:
    """Return a task type by its name.

    Args:
        name: a key of `TASK_TYPES`.
        architecture: the user's class of its models, or its import path; transformers' if None.
        what: field of the job that gave it, for messages.

    Raises:
        ConfigError: that isn't a class of models.
    """
    task_type = TASK_TYPES[name]
    if architecture is None:
        return task_type
    return task_type.of_class(custom_model_class(architecture, what))


def adaptor_of(name: str, *given: Adaptor | str | None) -> Adaptor:
    """Return the first adaptor that is given, or that of the task type.

    Args:
        name: a key of `TASK_TYPES`.
        given: callables or import paths, the more special first.

    Raises:
        ConfigError: an import path that leads nowhere.
    """
    for one in given:
        if one is not None:
            return import_callable(one, "adaptor")
    return TASK_TYPES[name].adaptor
