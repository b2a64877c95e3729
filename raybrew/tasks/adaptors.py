"""What a model's outputs mean: from a batch and the outputs to logits, labels and features.

The contract is TextBrewer's: `adaptor(batch, model_outputs) -> dict`, every key optional but at
least one present. `View` is that dict with its values brought into one form.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from raybrew.errors import ConfigError

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
