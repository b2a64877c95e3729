"""What is to be learnt: a data set, its columns, and what a prediction is."""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, model_validator

from raybrew.config.augmentation import Augmentation
from raybrew.config.distillation import DistillationConfig, Objective
from raybrew.config.section import DataSource, ImportPath, Many, Name, Section

__all__ = ["KindName", "Task"]

KindName = Literal[
    "sequence-classification",
    "multi-label",
    "regression",
    "token-classification",
    "question-answering",
    "causal-lm",
]

_COLUMNS = {
    "token-classification": {"text": "words", "label": "tags"},
    "question-answering": {"text": "question", "text_pair": "context", "label": "answers"},
}
"""Names of columns that kinds of task have for defaults of their own."""


def _changes(given: DistillationConfig | None) -> dict[str, Any] | None:
    # What was left out is the job's, and stays left out in a saved job.
    return None if given is None else given.model_dump(mode="json", exclude_unset=True)


class Task(Section):
    """One data set and what is to be learnt from it."""

    name: Name = Field(description="Name of the task; heads, labels and metrics carry it.")
    kind: KindName = Field(default="sequence-classification", description="What a prediction is.")
    train: DataSource = Field(description="Rows to learn from.")
    transfer: Many[DataSource] = Field(
        default=(),
        description="Further rows to learn from, of other data sets with the same text columns: "
        "teachers alone say what is to be learnt of them, their own labels are not looked at.",
    )
    eval: DataSource | None = Field(default=None, description="Rows to evaluate on.")
    text: str = Field(
        default="text",
        description="Column of the (first) text; for token-classification of the words (default "
        "`words`), for question-answering of the question (`question`).",
    )
    text_pair: str | None = Field(
        default=None,
        description="Column of the second text of a pair; for question-answering of the passage "
        "(default `context`), for causal-lm of what follows a prompt.",
    )
    label: str = Field(
        default="label",
        description="Column of what is to be learnt: a class as an integer or a name; for "
        "multi-label a list of them, or 0 or 1 for each class; numbers for regression; one class a "
        "word for token-classification (default `tags`); SQuAD's answers for question-answering "
        "(`answers`). Null and -100 are no label, and -1 unless a class has that name.",
    )
    label_names: Many[str] | None = Field(
        default=None,
        min_length=2,
        description="Classes in the order of the logits; read from the data if left out. The "
        "names of the data's ClassLabel in any order, or new ones for them in its order.",
    )
    teacher_column: str | None = Field(
        default=None,
        description="Column with the name of the teacher that each row is routed to, for the "
        "mixture `route`.",
    )
    max_length: int = Field(default=128, ge=4, le=131072, description="Longest input, in tokens.")
    augmentation: Augmentation | None = Field(
        default=None, description="Changed copies of the training rows; none if left out."
    )
    stride: int = Field(
        default=32,
        ge=0,
        description="Tokens that neighbouring windows of a long passage share, for "
        "question-answering.",
    )
    answers_at: Literal["given", "search"] = Field(
        default="given",
        description="Where the answers of question-answering stand: `given`, at the character that "
        "the data says, and any other is an error; `search`, where the text of the answer stands "
        "nearest to it. One whose text isn't in its passage then teaches nothing, and is counted.",
    )
    answers_by: Literal["word", "character"] = Field(
        default="word",
        description="What the F1 of answers compares: `word`, as SQuAD's script does, or "
        "`character`, as that of CMRC 2018 does, for writing without spaces.",
    )
    max_answer_tokens: int = Field(
        default=30, ge=1, description="Longest answer that question-answering gives, in tokens."
    )
    adaptor: ImportPath = Field(
        default=None,
        description="What the outputs of models of this task mean: (batch, outputs) -> dict, as a "
        "callable or `package.module:name`; that of its kind if left out.",
    )
    weight: float = Field(
        default=1.0, gt=0, description="Factor on this task's loss where there are several tasks."
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="Examples of its batches; training.batch_size if left out."
    )
    distillation: Annotated[Objective | None, PlainSerializer(_changes)] = Field(
        default=None, description="What this task's objective changes of the job's."
    )

    @property
    def rounds(self) -> int:
        """Parts of the training rows, of which an epoch reads one."""
        return 1 if self.augmentation is None else self.augmentation.rounds

    @model_validator(mode="before")
    @classmethod
    def _columns_of_its_kind(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {**_COLUMNS.get(str(given.get("kind")), {}), **given}

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> "Task":
        if self.kind == "question-answering" and self.text_pair is None:
            raise ValueError("expected `text_pair`, the column of the passages, got null")
        if self.kind == "token-classification" and self.text_pair is not None:
            raise ValueError("expected no `text_pair` for words, got " + repr(self.text_pair))
        counts = Counter(self.label_names or ())
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise ValueError(f"expected different `label_names`, got {', '.join(twice)} twice")
        return self
