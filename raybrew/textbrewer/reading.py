"""A model's outputs as a script's adaptor reads them: rows of logits, features of matches."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from raybrew.errors import ConfigError
from raybrew.matches.spec import MatchSpec
from raybrew.tasks.adaptors import View, view_of

logger = logging.getLogger(__name__)

Adaptor = Callable[[Any, Any], Mapping[str, Any]]
_KEYS = frozenset(View.__dataclass_fields__)


@dataclass(frozen=True)
class _Known:
    """An adaptor without the keys that nobody knows, which TextBrewer passes over as well."""

    adaptor: Adaptor

    def __call__(self, batch: Any, outputs: Any) -> Mapping[str, Any]:
        found = self.adaptor(batch, outputs)
        for key in found.keys() - _KEYS:
            logger.warning("adaptor %s: nobody looks at its %r", _name(self.adaptor), key)
        return {key: value for key, value in found.items() if key in _KEYS}


def read(adaptor: Adaptor, batch: Any, outputs: Any) -> View:
    """Call an adaptor and bring what it says into one form.

    Raises:
        ConfigError: it says nothing that is known.
    """
    return view_of(_Known(adaptor), batch, outputs)


def rows_of_logits(view: View) -> tuple[Tensor, ...]:
    """Return each logits as rows, (R, C): of examples, or of the tokens that its mask keeps."""
    return tuple(
        _rows(logits, mask) for logits, mask in zip(view.logits, view.logits_mask, strict=True)
    )


def rows_of_labels(view: View) -> tuple[Tensor, ...]:
    """Return the labels of each logits, (R,), in the rows of its logits.

    Raises:
        ConfigError: there are not as many labels as logits.
    """
    if len(view.labels) != len(view.logits):
        raise ConfigError(
            f"probability_shift: expected an adaptor that gives labels for each of "
            f"{len(view.logits)} logits, got {len(view.labels)}"
        )
    return tuple(
        labels if logits.dim() < 3 else _rows(labels.unsqueeze(-1), mask).squeeze(-1)
        for logits, labels, mask in zip(view.logits, view.labels, view.logits_mask, strict=True)
    )


def features_of(view: View, spec: MatchSpec, side: str) -> Sequence[Tensor]:
    """Return what a match compares of a model, one tensor a layer.

    Args:
        view: of the model.
        spec: the match.
        side: `teacher` or `student`.

    Raises:
        ConfigError: the adaptor gives no such layer; names the match.
    """
    layers = spec.teacher_layers if side == "teacher" else spec.student_layers
    found = view.hidden if spec.feature == "hidden" else view.attention
    absent = [layer for layer in layers if layer >= len(found) or found[layer] is None]
    if absent:
        has = f"0 to {len(found) - 1}" if found else "none"
        raise ConfigError(
            f"{spec.label}: the {side}'s adaptor gives no {spec.feature} of layer "
            f"{', '.join(map(str, absent))}: it gives {has}; have the model return them "
            "(output_hidden_states, or output_attentions and attn_implementation='eager')"
        )
    return [found[layer] for layer in layers]


def _rows(logits: Tensor, mask: Tensor | None) -> Tensor:
    if logits.dim() < 3:
        return logits
    return logits.flatten(0, -2) if mask is None else logits[mask != 0]


def _name(adaptor: Adaptor) -> str:
    return getattr(adaptor, "__name__", type(adaptor).__name__)
