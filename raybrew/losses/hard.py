"""Losses on true labels: one value per row, 0 where there is no label; no mean is taken."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor
from torch.nn.functional import logsigmoid

from raybrew.errors import ConfigError
from raybrew.losses.numerics import log_probs, promoted
from raybrew.losses.registry import Limits, OptionValue, checked_options, find_method


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
    targets = labels.to(values.dtype)
    if labels.shape == logits.shape[:-1] and logits.shape[-1] == 1:
        targets = targets.unsqueeze(-1)
    # What doesn't fit would broadcast by accident.
    if targets.shape != logits.shape:
        raise ConfigError(
            f"Regression labels of the shape {tuple(labels.shape)} don't fit outputs of the shape "
            f"{tuple(logits.shape)}: expected one label for each output."
        )
    known = ~targets.isnan()
    error = (values - targets).masked_fill(~known, 0.0)
    return error.square().sum(dim=-1) / known.sum(dim=-1).clamp(min=1)


HARD_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mse": squared_error,
}
LIMITS = {"label_smoothing": Limits(0.0, 1.0, high_open=True)}


def make_hard_loss(
    name: str, options: Mapping[str, OptionValue] | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Build a hard loss from its name and options.

    Args:
        name: a key of `HARD_LOSSES`.
        options: what isn't given keeps its default.

    Returns:
        (logits, labels) -> (*rows); picklable.

    Raises:
        ConfigError: an unknown name or option, a value out of range.
    """
    function = find_method("hard loss", name, HARD_LOSSES)
    return partial(
        function, **checked_options(f"Hard loss {name!r}", function, options or {}, LIMITS)
    )
