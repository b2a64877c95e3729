"""A task: its data set, columns and augmentation."""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, model_validator

from raybrew.config.distillation import DistillationConfig
from raybrew.config.section import DataSource, ImportPath, Many, Name, Section

_CASES = 5
_DEFAULTS: dict[str, dict[str, Any]] = {
    "masking": {"p": 0.1},
    "deleting": {"p": 0.1},
    "n_gram_sampling": {"p_ng": (0.2,) * 5, "l_ng": (1, 2, 3, 4, 5)},
    "short_disorder": {"p": (0.9, 0.1, 0.0, 0.0, 0.0)},
    "long_disorder": {"p": 0.1, "length": 20.0},
}


class Operation(Section):
    """One change of a list of tokens; names, options and defaults are TextBrewer's."""

    name: Literal["masking", "deleting", "n_gram_sampling", "short_disorder", "long_disorder"] = (
        Field(description="Which change.")
    )
    p: float | Many[float] | None = Field(
        default=None,
        description="Chance of each token (masking, deleting: 0.1) or span (long_disorder: 0.1); "
        "for short_disorder those of abc, bac, cba, cab and bca (0.9, 0.1, 0, 0, 0).",
    )
    p_ng: Many[float] | None = Field(
        default=None, description="n_gram_sampling: chance of each of `l_ng`; 0.2 each."
    )
    l_ng: Many[int] | None = Field(
        default=None, description="n_gram_sampling: lengths of the span that is kept; 1 to 5."
    )
    length: float | None = Field(
        default=None,
        gt=0,
        description="long_disorder: tokens of a span whose halves change places (20); up to 1 it "
        "is a share of the tokens.",
    )

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the change, with its defaults."""
        given = self.model_dump(exclude={"name"}, exclude_none=True)
        return {**_DEFAULTS[self.name], **given}

    @model_validator(mode="after")
    def _fits(self) -> "Operation":
        options, known = self.options, _DEFAULTS[self.name]
        unknown = sorted(options.keys() - known.keys())
        if unknown:
            raise ValueError(f"{self.name} takes {', '.join(known)}, got {', '.join(unknown)}")
        p, lengths = options.get("p", 0), options.get("l_ng")
        if self.name == "short_disorder":
            _check_distribution("short_disorder: p", p, _CASES)
        elif isinstance(p, tuple) or not 0 <= p <= 1:
            raise ValueError(f"{self.name}: expected p in [0, 1], got {p}")
        if lengths is not None:
            if min(lengths, default=0) < 1:
                raise ValueError(f"expected lengths of 1 or more in l_ng, got {lengths}")
            _check_distribution("n_gram_sampling: p_ng", options["p_ng"], len(lengths))
        return self


def _check_distribution(what: str, given: Any, count: int) -> None:
    values = given if isinstance(given, tuple) else (given,)
    if len(values) != count or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise ValueError(f"expected {count} numbers ≥ 0 with the sum 1 in {what}, got {given}")


class Augmentation(Section):
    """Changed copies of a task's training rows; teachers label them like any other row."""

    operations: Many[Operation] = Field(
        min_length=1, description="Changes, one after another, of each copy."
    )
    copies: int = Field(
        default=1, ge=1, le=1000, description="Changed copies of each row in an epoch."
    )
    rounds: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Epochs with changes of their own; after them the same changes come again.",
    )
    originals: bool = Field(default=True, description="Read the unchanged rows too.")
    hard_labels: bool = Field(
        default=False, description="Copies keep the label of their row; else they have none."
    )
    unit: Literal["word", "character"] = Field(
        default="word",
        description="What a token of a text is: between white space, or each character, for "
        "writing without spaces.",
    )
    mask: str = Field(
        default="[MASK]",
        min_length=1,
        description="What masking writes; the mask token of all that read the task.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of all changes.")


TaskTypeName = Literal[
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
"""By task type, default names of columns that differ from `Task`'s."""


def _changes(given: DistillationConfig | None) -> dict[str, Any] | None:
    # Fields that were left out are the job's; a saved job leaves them out too.
    return None if given is None else given.model_dump(mode="json", exclude_unset=True)


class Task(Section):
    """One data set and what a model learns from it."""

    name: Name = Field(description="Name of the task; heads, labels and metrics carry it.")
    kind: TaskTypeName = Field(
        default="sequence-classification", description="What a prediction is."
    )
    train: DataSource = Field(description="Rows to learn from.")
    transfer: Many[DataSource] = Field(
        default=(),
        description="Further rows to learn from, of other data sets with the same text columns: "
        "only teachers label them, their own labels are ignored.",
    )
    eval: DataSource | None = Field(default=None, description="Rows to evaluate on.")
    eval_fraction: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Where there is no `eval`, the share of the labelled rows of `train` that is "
        "set apart to evaluate on. A hash of a row's texts and of `eval_seed` draws them: the same "
        "rows in every run and job, and equal texts are all on one side.",
    )
    eval_seed: int = Field(
        default=0, ge=0, lt=2**32, description="Another one sets other rows of `train` apart."
    )
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
        description="Column of the label: a class as an integer or a name; for "
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
        "the data gives, and any other is an error; `search`, where the text of the answer stands "
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
        "callable or `package.module:name`; that of its type if left out.",
    )
    weight: float = Field(
        default=1.0, gt=0, description="Factor on this task's loss where there are several tasks."
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="Examples of its batches; training.batch_size if left out."
    )
    distillation: Annotated[DistillationConfig | None, PlainSerializer(_changes)] = Field(
        default=None, description="What this task's objective changes of the job's."
    )

    @property
    def is_evaluated(self) -> bool:
        """Whether it has rows to evaluate on, of their own or set apart from the training rows."""
        return self.eval is not None or self.eval_fraction is not None

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
        if self.eval is not None and self.eval_fraction is not None:
            raise ValueError(
                "expected `eval` or `eval_fraction`, which takes evaluation rows from `train`, got "
                "both"
            )
        counts = Counter(self.label_names or ())
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise ValueError(f"expected different `label_names`, got {', '.join(twice)} twice")
        return self
