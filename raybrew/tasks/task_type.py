"""What the engine asks of a task type, the adaptors of models.

And a user's own class of models.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from raybrew.config import Task
from raybrew.data.columns import Rows, read_rows
from raybrew.data.encoding import EncodedView, encode
from raybrew.data.payload import Payload
from raybrew.data.split import STUDENT_VIEW, UNLABELLED, EncodedSplit
from raybrew.errors import ConfigError, import_callable

# What a model's outputs mean: from a batch and the outputs to logits, labels and features.
#
# The contract is TextBrewer's: `adaptor(batch, model_outputs) -> dict`, every key optional but at
# least one present. `View` is that dict with its values brought into one form.

Adaptor = Callable[[Mapping[str, Any], Any], Mapping[str, Any]]


@dataclass(frozen=True)
class View:
    """What the objective sees of a model's answer to a batch of B examples of L tokens.

    Args:
        logits: each (B, C) or (B, L, C), raw.
        logits_mask: one a logits tensor, (B, L) or None.
        labels: one a logits tensor, (B,) or (B, L); negative = ignored.
        losses: scalars that the model computed itself.
        hidden: each (B, L, H), index 0 = embeddings.
        attention: each (B, A, L, L) or (B, L, L).
        inputs_mask: (B, L), 1 = real token.
    """

    logits: tuple[Tensor, ...] = ()
    logits_mask: tuple[Tensor | None, ...] = ()
    labels: tuple[Tensor, ...] = ()
    losses: tuple[Tensor, ...] = ()
    hidden: tuple[Tensor, ...] = ()
    attention: tuple[Tensor, ...] = ()
    inputs_mask: Tensor | None = None

    def without_examples(self) -> "View":
        """Return the same view of a batch without examples, with its graph."""

        def none_of(tensors: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(None if each is None else each[:0] for each in tensors)

        return View(
            logits=none_of(self.logits),
            logits_mask=none_of(self.logits_mask),
            labels=none_of(self.labels),
            # A mean over no label is NaN, and 0 times that as well.
            losses=tuple(
                each.masked_fill(torch.ones_like(each, dtype=torch.bool), 0.0)
                for each in self.losses
            ),
            hidden=none_of(self.hidden),
            attention=none_of(self.attention),
            inputs_mask=none_of([self.inputs_mask])[0],
        )


def view_of(adaptor: Adaptor, batch: Mapping[str, Any], outputs: Any) -> View:
    """Call an adaptor and bring what it returns into one form.

    Raises:
        ConfigError: it returned no known key, or one that is unknown.
    """
    found = dict(adaptor(batch, outputs))
    known = tuple(field.name for field in fields(View))
    unknown = sorted(found.keys() - set(known))
    if unknown or not found:
        raise ConfigError(
            f"adaptor {getattr(adaptor, '__name__', adaptor)}: expected one or more of "
            f"{', '.join(known)}, got {', '.join(unknown) or 'an empty dict'}"
        )
    inputs_mask = found.pop("inputs_mask", None)
    view = View(**{name: _tuple(value) for name, value in found.items()}, inputs_mask=inputs_mask)
    masks = view.logits_mask or (None,)
    # One mask may serve several logits.
    masks = masks * len(view.logits) if len(masks) == 1 else masks
    if len(masks) != len(view.logits):
        raise ConfigError(
            f"adaptor: expected one logits_mask or one for each of the {len(view.logits)} logits, "
            f"got {len(masks)}"
        )
    return replace(view, logits_mask=masks)


def first_classes(adaptor: Adaptor, number: int | None) -> Adaptor:
    """Return the adaptor with the first logits of each row alone; with all if None."""
    return adaptor if number is None else _with_logits(adaptor, slice(number))


def ordered_classes(adaptor: Adaptor, order: Sequence[int] | None) -> Adaptor:
    """Return the adaptor with the logits of each row in another order; as they are if None."""
    return adaptor if order is None else _with_logits(adaptor, list(order))


def _with_logits(adaptor: Adaptor, chosen: slice | list[int]) -> Adaptor:
    def adapted(batch: Mapping[str, Any], outputs: Any) -> dict[str, Any]:
        view = view_of(adaptor, batch, outputs)
        return {**vars(view), "logits": [logits[..., chosen] for logits in view.logits]}

    return adapted


def one_output(batch: Mapping[str, Any], outputs: Any) -> dict[str, Any]:
    """Adaptor of transformers' models with one output: classifiers of texts or of tokens, LMs."""
    found: dict[str, Any] = {"logits": outputs.logits} | _features(batch, outputs)
    if "labels" in batch:
        found["labels"] = batch["labels"]
    return found


def start_and_end(batch: Mapping[str, Any], outputs: Any) -> dict[str, Any]:
    """Adaptor of transformers' models that find answers: starts and ends, (B, L) each."""
    found = {"logits": [outputs.start_logits, outputs.end_logits]} | _features(batch, outputs)
    if "labels" in batch:
        found["labels"] = list(batch["labels"].unbind(-1))
    return found


def _features(batch: Mapping[str, Any], outputs: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"inputs_mask": batch["attention_mask"]}
    if outputs.get("hidden_states") is not None:
        found["hidden"] = outputs.hidden_states
    if outputs.get("attentions") is not None:
        found["attention"] = outputs.attentions
    return found


def _tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


# What the engine asks of a task type, and task types for a user's own class of models.
#
# The contract of such a class: a subclass of `transformers.PreTrainedModel` with a `config_class`
# of its own type, whose `forward` takes `input_ids` and `attention_mask`; the adaptor says what
# its outputs mean.

Layout = Literal["example", "token", "position"]
"""Where a model's logits are: (b, C), a row of classes for each example; (b, L, C), one for each
token; or (b, L), where the tokens themselves are the classes."""

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]
Metrics = dict[str, float]
Prediction = dict[str, Any]
"""What a model answers to one row of the data, as `TaskType.decode` has it: plain values."""


def scores_of(
    found: Sequence[Prediction],
    true: Sequence[Prediction | None],
    score: Callable[[Prediction, Prediction], float],
) -> np.ndarray:
    """Return the score of each prediction with its label, NaN where that isn't known."""
    pairs = zip(found, true, strict=True)
    return np.array([math.nan if label is None else score(one, label) for one, label in pairs])


def f1_scores(right: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> list[float]:
    """Return 2 right / (predicted + true) of each class, NaN where there is neither."""
    total = predicted + true
    return np.where(total > 0, 2 * right / np.maximum(total, 1), math.nan).tolist()


@dataclass(frozen=True)
class CustomModelClass:
    """A class of models of the user's, with the two methods that transformers' Auto classes have.

    Args:
        wrapped: the user's.
    """

    wrapped: type[PreTrainedModel]

    @property
    def __name__(self) -> str:
        return self.wrapped.__name__

    def config_beside(self, base: PreTrainedConfig) -> PreTrainedConfig:
        """Return a configuration of this class for the vocabulary of another model."""
        own: Any = self.wrapped.config_class
        if isinstance(base, own):
            return base
        vocabulary = base.get_text_config()
        return own(vocab_size=vocabulary.vocab_size, pad_token_id=vocabulary.pad_token_id)

    def from_config(
        self, config: PreTrainedConfig, dtype: torch.dtype = torch.float32
    ) -> PreTrainedModel:
        """Build a model with random weights."""
        return self.wrapped._from_config(config, dtype=dtype)

    def from_pretrained(self, path: str, **options: Any) -> Any:
        """Load a model that `save_pretrained` wrote."""
        del options["trust_remote_code"]  # its code is here
        return self.wrapped.from_pretrained(path, **options)


def custom_model_class(target: Callable[..., Any] | str, what: str) -> CustomModelClass:
    """Resolve a class or its import path, and register the type of its configuration.

    Args:
        target: either.
        what: field of the job, for messages.

    Raises:
        ConfigError: nothing is there, or it isn't such a class.
    """
    found = import_callable(target, what)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ConfigError(
            f"{what}: expected a subclass of transformers.PreTrainedModel, got {target!r}"
        )
    config_class = found.config_class
    if not isinstance(config_class, type) or not issubclass(config_class, PreTrainedConfig):
        raise ConfigError(
            f"{what}: expected {found.__name__}.config_class to be a class of configurations "
            f"(a subclass of transformers.PreTrainedConfig), got {config_class!r}"
        )
    if not config_class.model_type:
        raise ConfigError(
            f"{what}: expected {config_class.__name__}.model_type to name its type, got ''"
        )
    if config_class.model_type not in CONFIG_MAPPING:
        AutoConfig.register(config_class.model_type, config_class)
    return CustomModelClass(found)


class Breakdown(NamedTuple):
    """A metric of one model by class, bin or position, to be read beside another model's.

    Args:
        by: what the groups are, such as `class`.
        metric: name of the scores.
        groups: names, the same for all models on the same rows.
        counts: rows, words or tokens of each group.
        scores: of each group, NaN where none can be had.
        confusion: int64 (C, C), rows by true class and predicted class; of exclusive classes only.
    """

    by: str
    metric: str
    groups: list[str]
    counts: list[int]
    scores: list[float]
    confusion: np.ndarray | None = None


class TaskType(ABC):
    """A task type. Instances hold no state.

    Attributes:
        name: as `Task.kind` has it.
        model_class: transformers' class of models with the head of this type, or the user's.
        layout: of the logits.
        hard_loss: loss on true labels, a key of `HARD_LOSSES`.
        kd_loss: loss on the teachers' logits where the job names none.
        exclusive: whether one class of each row is the true one, which mixtures and losses that
            look at the true class need.
        softened: whether a temperature divides the outputs; regression has nothing to soften.
        has_labels: whether a model's configuration names the task's labels.
        problem_type: transformers' word for it in a model's configuration.
        has_names: whether the order of logits is that of names which teachers have too.
        own_inputs: whether a teacher with a tokenizer of its own can teach it.
        takes_column: whether logits in a column of the data can stand in for a teacher.
        needs_offsets: whether tokens have to be found in the text, which fast tokenizers can.
        dense_metrics: metrics that the largest logits alone don't give.
        ranking_metric: the metric by which checkpoints are ranked, the larger the better.
    """

    name: ClassVar[str]
    model_class: Any
    layout: ClassVar[Layout] = "example"
    hard_loss: ClassVar[str] = "cross_entropy"
    kd_loss: ClassVar[str] = "ce"
    exclusive: ClassVar[bool] = True
    softened: ClassVar[bool] = True
    has_labels: ClassVar[bool] = True
    problem_type: ClassVar[ProblemType | None] = None
    has_names: ClassVar[bool] = True
    own_inputs: ClassVar[bool] = True
    takes_column: ClassVar[bool] = True
    needs_offsets: ClassVar[bool] = False
    dense_metrics: ClassVar[tuple[str, ...]] = ()
    ranking_metric: ClassVar[str]

    @staticmethod
    def adaptor(batch: Mapping[str, Any], outputs: Any) -> Mapping[str, Any]:
        """Read the outputs of its models; see `raybrew.tasks.task_type`."""
        return one_output(batch, outputs)

    def of_class(self, model_class: Any) -> "TaskType":
        """Return the same task type for models of another class."""
        other = copy.copy(self)
        other.model_class = model_class
        return other

    @property
    def is_custom(self) -> bool:
        """Whether its models are of a class of the user's."""
        return isinstance(self.model_class, CustomModelClass)

    @property
    def names_classes(self) -> bool:
        """Whether a model's configuration names its classes, in the order of its logits."""
        return self.has_labels and self.has_names

    @property
    def augments(self) -> bool:
        """Whether its rows may be read changed: no place in a text, nor the text, is the answer."""
        return self.layout != "position" and self.has_labels

    def read(
        self, task: Task, train: Dataset, evaluation: Dataset | None
    ) -> tuple[tuple[str, ...], Rows, Rows | None]:
        """Read and check the task's columns.

        Returns:
            Names of the classes in the order of the logits, and the rows of either split.

        Raises:
            DataError: a column or a row isn't what the task type needs; names them.
        """
        splits = {"train": train} if evaluation is None else {"train": train, "eval": evaluation}
        names, rows = self.read_splits(task, splits)
        return names, rows["train"], rows.get("eval")

    @abstractmethod
    def read_splits(
        self, task: Task, splits: Mapping[str, Dataset]
    ) -> tuple[tuple[str, ...], dict[str, Rows]]:
        """Read the splits, `train` and maybe `eval`; see `read`."""

    def encode(
        self, task: Task, rows: Rows, tokenizers: Mapping[str, PreTrainedTokenizerBase]
    ) -> EncodedSplit:
        """Encode rows for each tokenizer, by name of its view.

        The form here is one example a row, with a label of its own.
        """
        views: dict[str, EncodedView] = {}
        cut = 0
        for name, tokenizer in tokenizers.items():
            views[name], truncated = encode(tokenizer, rows.texts, rows.pairs, task.max_length)
            cut += truncated if name == STUDENT_VIEW else 0
        views |= {name: logits.view() for name, logits in rows.supplied.items()}
        return EncodedSplit(views, rows.labels, counts={"truncated": cut})

    def num_labels(
        self, names: Sequence[str], tokenizer: PreTrainedTokenizerBase | None = None
    ) -> int:
        """Return how many logits a row has, by the tokenizer where its tokens are the classes."""
        return len(names)

    def widths(self, num_labels: int) -> tuple[int, ...]:
        """Return how many logits each output of a row has; 1 each where tokens are classes."""
        return (num_labels,)

    def num_labelled(self, rows: Rows) -> int:
        """Return how many rows of the data have a label."""
        return self.counts(rows.labels)[1]

    def counts(self, labels: np.ndarray) -> tuple[int, int]:
        """Return how many rows of logits count, and how many of them have a label.

        Args:
            labels: of `EncodedSplit.labels_of`.
        """
        return len(labels), int((labels >= 0).sum())

    def labels_of(self, labels: Tensor) -> tuple[Tensor, ...]:
        """Return the labels of each logits tensor from those of a batch."""
        return (labels,)

    def predict(self, logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """Reduce rows of logits to what the metrics need.

        Args:
            logits: of each output, float32 (R, C).
            labels: of each output, (R, …).

        Returns:
            (R, width).
        """
        return logits[0]

    def class_flags(
        self, labels: np.ndarray, predicted: np.ndarray, num_classes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return which classes rows have, and which are predicted, where a label is known.

        Args:
            labels: class of each row, (R,), or 0 or 1 for each class, (R, C); negative if unknown.
            predicted: class of each row, (R,) or (R, 1), or logits, (R, C).
            num_classes: C.

        Returns:
            bool (r, C) each, r rows with a label.
        """
        known = labels >= 0 if labels.ndim == 1 else labels.max(axis=1) >= 0
        labels, predicted = labels[known], predicted[known]
        if not self.exclusive:
            return labels > 0, predicted > 0
        classes = np.arange(num_classes)
        if predicted.ndim > 1 and predicted.shape[1] == num_classes:
            predicted = predicted.argmax(axis=1)
        return labels[:, None] == classes, predicted.reshape(-1, 1) == classes

    @abstractmethod
    def metrics(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> Metrics:
        """Compare predictions with labels.

        Args:
            predicted: of `predict`, a row for each example.
            split: labels, and what else the metrics need.
            rows: of the split that were predicted, int64 (n,).
            names: of the classes.

        Returns:
            Metrics by name, and `examples` that were counted; no metric where nothing is labelled.
        """

    @abstractmethod
    def decode(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> list[Prediction]:
        """Turn predictions into what a person reads.

        Args:
            predicted: of `predict`, a row for each example.
            split: that they are of; labels aren't looked at.
            rows: of the split that were predicted, int64 (n,), all examples of a row of the data
                together.
            names: of the classes, in the order of the logits.

        Returns:
            One dict for each row of the data, in the order in which the rows first come:

            - sequence-classification: `label`, its `probability`
            - multi-label: `labels`, the classes of probability ½ or more, and `probabilities`
            - regression: `value`; a list where the task has several numbers
            - token-classification: `tags`, one a word, None for a word that no token stands for
            - question-answering: `answer`, empty for none, and its `score` in [0, 1]
            - causal-lm: `loss` in nats a token, `perplexity`, `accuracy`, number of `tokens`
        """

    @abstractmethod
    def truth(
        self, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> list[Prediction | None]:
        """Return the labels of rows of the data in the form of `decode`; None where unknown."""

    @abstractmethod
    def row_scores(
        self, found: Sequence[Prediction], true: Sequence[Prediction | None], split: EncodedSplit
    ) -> np.ndarray:
        """Compare predictions with labels, or with another model's predictions, row by row.

        Args:
            found: of `decode`.
            true: of `truth`, or of `decode`.
            split: that they are of.

        Returns:
            float64 (n,), the greater the better, NaN where the label isn't known.
        """

    @abstractmethod
    def breakdown(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> Breakdown | None:
        """Return a metric by class, bin or position; None where no row has a label.

        The arguments are those of `metrics`.
        """

    def constant_score(self, split: EncodedSplit, names: Sequence[str]) -> float:
        """Return the most that the same answer to every row gets by the main metric.

        Args:
            split: with the labels.
            names: of the classes.

        Returns:
            0 for metrics that a constant answer gets nothing by.
        """
        return 0.0

    def unlabelled_rows(self, task: Task, dataset: Dataset, what: str, num_labels: int) -> Rows:
        """Read texts alone, for predictions: no column of labels has to be there.

        Args:
            task: names the columns of the texts.
            dataset: the rows.
            what: where they are from, for messages.
            num_labels: of the model.

        Raises:
            DataError: a column of texts is missing, or a row of it holds none.
        """
        return read_rows(task, dataset, what, np.full(len(dataset), UNLABELLED))

    def main_metric(self, names: Sequence[str]) -> str:
        """Return the metric by which checkpoints are ranked, for classes of these names."""
        return self.ranking_metric
