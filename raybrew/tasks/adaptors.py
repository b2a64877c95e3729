"""What a model's outputs mean: from a batch and the outputs to logits, labels and features.

The contract is TextBrewer's: `adaptor(batch, model_outputs) -> dict`, every key optional but at
least one present. `View` is that dict with its values brought into one form.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raybrew.errors import ConfigError, import_callable

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
        masks = tuple(None if mask is None else mask[:0] for mask in self.logits_mask)
        return View(
            logits=tuple(each[:0] for each in self.logits),
            logits_mask=masks,
            labels=tuple(each[:0] for each in self.labels),
            # A mean over no label is NaN, and 0 times that as well.
            losses=tuple(
                each.masked_fill(each.new_ones(each.shape, dtype=torch.bool), 0.0)
                for each in self.losses
            ),
            hidden=tuple(each[:0] for each in self.hidden),
            attention=tuple(each[:0] for each in self.attention),
            inputs_mask=None if self.inputs_mask is None else self.inputs_mask[:0],
        )


def view_of(adaptor: Adaptor, batch: Mapping[str, Any], outputs: Any) -> View:
    """Call an adaptor and bring what it returns into one form.

    Raises:
        ConfigError: it returned no known key, or one that is unknown.
    """
    found = dict(adaptor(batch, outputs))
    known = tuple(View.__dataclass_fields__)
    unknown = sorted(found.keys() - set(known))
    if unknown or not found:
        raise ConfigError(
            f"adaptor {getattr(adaptor, '__name__', adaptor)}: expected one or more of "
            f"{', '.join(known)}, got {', '.join(unknown) or 'an empty dict'}"
        )
    logits = _tuple(found.get("logits"))
    masks = _tuple(found.get("logits_mask")) or (None,)
    # One mask may serve several logits.
    masks = masks * len(logits) if len(masks) == 1 else masks
    if len(masks) != len(logits):
        raise ConfigError(
            f"adaptor: expected one logits_mask or one for each of the {len(logits)} logits, "
            f"got {len(masks)}"
        )
    return View(
        logits=logits,
        logits_mask=masks,
        labels=_tuple(found.get("labels")),
        losses=_tuple(found.get("losses")),
        hidden=_tuple(found.get("hidden")),
        attention=_tuple(found.get("attention")),
        inputs_mask=found.get("inputs_mask"),
    )


def first_classes(adaptor: Adaptor, number: int | None) -> Adaptor:
    """Return the adaptor with the first logits of each row alone; with all if None."""
    if number is None:
        return adaptor

    def first(batch: Mapping[str, Any], outputs: Any) -> dict[str, Any]:
        view = view_of(adaptor, batch, outputs)
        return {**vars(view), "logits": [logits[..., :number] for logits in view.logits]}

    return first


def sequence_classification(batch: Mapping[str, Any], outputs: Any) -> dict[str, Any]:
    """Adaptor of transformers' models with one output: classifiers of texts or of tokens, LMs."""
    found: dict[str, Any] = {"logits": outputs.logits} | _features(batch, outputs)
    if "labels" in batch:
        found["labels"] = batch["labels"]
    return found


def question_answering(batch: Mapping[str, Any], outputs: Any) -> dict[str, Any]:
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


ADAPTORS: dict[str, Adaptor] = {
    "sequence-classification": sequence_classification,
    "multi-label": sequence_classification,
    "regression": sequence_classification,
    "token-classification": sequence_classification,
    "question-answering": question_answering,
    "causal-lm": sequence_classification,
}
"""The built-in adaptor of each kind of task."""


def adaptor_of(kind: str, *given: Adaptor | str | None) -> Adaptor:
    """Return the first adaptor that is given, or that of the kind of task.

    Args:
        kind: a key of `ADAPTORS`.
        given: callables or import paths, the more special first.

    Raises:
        ConfigError: an import path that leads nowhere.
    """
    for one in given:
        if one is not None:
            return import_callable(one, "adaptor")
    return ADAPTORS[kind]


def _tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
