"""Losses on true labels: one value for each row, 0 where there is no label.

HardLoss(function, valid_rows): the objective divides the sum of `function` by the count of
`valid_rows`, over all ranks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, Int64, Num
from torch import Tensor
from torch.nn.functional import logsigmoid

from raybrew.errors import ConfigError
from raybrew.losses.numerics import log_probs, promoted
from raybrew.losses.registry import Limits, OptionValue, checked_options, unknown_name


def cross_entropy(
    logits: Float[Tensor, "*rows classes"],
    labels: Int64[Tensor, "*rows"],
    *,
    label_smoothing: float | int = 0.0,
) -> Float[Tensor, "*rows"]:
    """−(1 − ε) log q_y − ε mean_c log q_c with q = softmax(z); 0 where the label is negative.

    Args:
        logits: raw. The mean of the smoothing leaves out classes at −inf.
        labels: true classes; negative = ignored.
        label_smoothing: ε in [0, 1).

    Returns:
        (*rows), in nats.
    """
    student_log_probs = log_probs(logits, 1.0)
    target = labels.clamp(min=0).unsqueeze(-1)
    loss = -student_log_probs.gather(-1, target).squeeze(-1)
    if label_smoothing > 0:
        masked = logits.isneginf()
        total = -student_log_probs.masked_fill(masked, 0.0).sum(dim=-1)
        uniform = total / (~masked).sum(dim=-1).clamp(min=1)
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    return torch.where(labels < 0, 0.0, loss)


def binary_cross_entropy(
    logits: Float[Tensor, "*rows classes"],
    labels: Num[Tensor, "*rows classes"] | Bool[Tensor, "*rows classes"],
    *,
    label_smoothing: float | int = 0.0,
) -> Float[Tensor, "*rows"]:
    """Mean over labelled classes of −y log σ(z) − (1 − y) log(1 − σ(z)).

    Args:
        logits: raw, one independent logit for each class.
        labels: 0 or 1 (or a probability) for each class; negative = ignored.
        label_smoothing: ε in [0, 1): y becomes (1 − ε) y + ε/2.

    Returns:
        (*rows), in nats; 0 in rows where all classes are ignored.
    """
    values = logits.to(promoted(logits))
    known = labels >= 0
    yes = labels.to(values.dtype) * (1 - label_smoothing) + label_smoothing / 2
    no = 1 - yes
    yes_term = yes * logsigmoid(values).masked_fill((yes == 0) | ~known, 0.0)
    no_term = no * logsigmoid(-values).masked_fill((no == 0) | ~known, 0.0)
    return -(yes_term + no_term).sum(dim=-1) / known.sum(dim=-1).clamp(min=1)


def squared_error(
    logits: Float[Tensor, "*rows outputs"],
    labels: Num[Tensor, "..."],
) -> Float[Tensor, "*rows"]:
    """Mean over outputs of (z − y)², for regression.

    Args:
        logits: the model's outputs, (*rows, outputs).
        labels: (*rows, outputs), or (*rows) where there is one output. A negative value is a value
            here; what is missing is NaN.

    Returns:
        (*rows); 0 in rows where all labels are missing.

    Raises:
        ConfigError: labels of another shape.
    """
    values = logits.to(promoted(logits))
    targets = _regression_targets(logits, labels).to(values.dtype)
    known = ~targets.isnan()
    error = (values - targets).masked_fill(~known, 0.0)
    return error.square().sum(dim=-1) / known.sum(dim=-1).clamp(min=1)


def _regression_targets(logits: Tensor, labels: Tensor) -> Tensor:
    """Give labels the shape of the outputs, refusing what would broadcast by accident."""
    targets = labels
    if labels.shape == logits.shape[:-1] and logits.shape[-1] == 1:
        targets = labels.unsqueeze(-1)
    if targets.shape != logits.shape:
        raise ConfigError(
            f"Regression labels of the shape {tuple(labels.shape)} don't fit outputs of the shape "
            f"{tuple(logits.shape)}: expected one label for each output."
        )
    return targets


def _class_rows(logits: Tensor, labels: Int[Tensor, "*rows"]) -> Bool[Tensor, "*rows"]:
    return labels >= 0


def _multi_label_rows(logits: Tensor, labels: Tensor) -> Bool[Tensor, "*rows"]:
    return (labels >= 0).any(dim=-1)


def _regression_rows(logits: Tensor, labels: Tensor) -> Bool[Tensor, "*rows"]:
    return ~_regression_targets(logits, labels).isnan().all(dim=-1)


@dataclass(frozen=True)
class HardLoss:
    """A loss on true labels, and which rows have one.

    Attributes:
        function: (logits, labels, *, options) -> (*rows).
        valid_rows: (logits, labels) -> (*rows) bool, the rows that count.
        limits: option -> interval.
    """

    function: Callable[..., Tensor]
    valid_rows: Callable[[Tensor, Tensor], Tensor]
    limits: Mapping[str, Limits] = field(default_factory=dict)


@dataclass(frozen=True)
class BoundHardLoss:
    """A hard loss with its options; picklable."""

    loss: HardLoss
    options: Mapping[str, OptionValue]

    def __call__(self, logits: Float[Tensor, "..."], labels: Tensor) -> Float[Tensor, "*rows"]:
        """Compute the loss of each row; 0 where there is no label."""
        return self.loss.function(logits, labels, **self.options)

    def valid_rows(self, logits: Float[Tensor, "..."], labels: Tensor) -> Bool[Tensor, "*rows"]:
        """Mark the rows that have a label: what the sum is to be divided by."""
        return self.loss.valid_rows(logits, labels)


SMOOTHING = {"label_smoothing": Limits(0.0, 1.0, high_open=True)}

HARD_LOSSES: dict[str, HardLoss] = {
    "cross_entropy": HardLoss(cross_entropy, _class_rows, SMOOTHING),
    "binary_cross_entropy": HardLoss(binary_cross_entropy, _multi_label_rows, SMOOTHING),
    "mse": HardLoss(squared_error, _regression_rows),
}


def make_hard_loss(name: str, options: Mapping[str, OptionValue] | None = None) -> BoundHardLoss:
    """Build a hard loss from its name and options.

    Args:
        name: a key of `HARD_LOSSES`.
        options: what isn't given keeps its default.

    Returns:
        (logits, labels) -> (*rows), with `.valid_rows(logits, labels)`.

    Raises:
        ConfigError: an unknown name or option, a value out of range.
    """
    if name not in HARD_LOSSES:
        raise unknown_name("hard loss", name, HARD_LOSSES)
    loss = HARD_LOSSES[name]
    checked = checked_options(f"Hard loss {name!r}", loss.function, options or {}, loss.limits)
    return BoundHardLoss(loss, checked)
