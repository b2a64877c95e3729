"""Task types: one file each with everything that sets it apart from the others.

    rows of the data ──read──► Rows ──encode──► EncodedSplit ──► batches ──► model_class ──► adaptor
                                                                                               │
      metrics ◄──metrics── predictions ◄──predict── rows of logits ◄──layout (objective/rows)──┘
                                                        └──► hard_loss, kd_loss

The engine around them knows layouts (one row of logits an example, a token, or a set of positions)
and no kind.
"""

from collections.abc import Callable
from typing import Any

from raybrew.tasks.causal_lm import CausalLM
from raybrew.tasks.multi_label import MultiLabel
from raybrew.tasks.question_answering import QuestionAnswering
from raybrew.tasks.regression import Regression
from raybrew.tasks.sequence_classification import SequenceClassification
from raybrew.tasks.task_type import TaskType, custom_model_class
from raybrew.tasks.token_classification import TokenClassification

TASK_TYPES: dict[str, TaskType] = {
    kind.name: kind
    for kind in (
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
    """Return a kind of task by its name.

    Args:
        name: a key of `TASK_TYPES`.
        architecture: the user's class of its models, or its import path; transformers' if None.
        what: field of the job that gave it, for messages.

    Raises:
        ConfigError: that isn't a class of models.
    """
    kind = TASK_TYPES[name]
    return kind if architecture is None else kind.of_class(custom_model_class(architecture, what))
