"""Methods by name, the options that their signatures state, and what a KD loss is.

KDLoss(function, space, needs…) ── bind(options) ──► KDLoss, ready to be called
(student_logits, teacher_logits | TopK, temperature, labels, mask) ──► loss of each row
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeGuard

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from raybrew.errors import ConfigError, import_callable, unknown_name
from raybrew.losses.numerics import TopK, bucket_log_probs, log_probs, promoted

OptionValue = float | int | bool | str


class Limits(NamedTuple):
    """The interval an option's value must lie in; an open end is excluded."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def admits(self, value: float | int) -> bool:
        """Whether the value is finite and inside the interval."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        start, end = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"{start}{self.low}, {self.high}{end}"


def find_method(
    what: str, name: str, known: Mapping[str, Callable[..., Any]]
) -> Callable[..., Any]:
    """Find a method by its name, or a user's by its import path "package.module:function".

    Args:
        what: what the name is of, e.g. "weight schedule".
        name: as configured.
        known: methods by name.

    Raises:
        ConfigError: neither leads anywhere.
    """
    if ":" in name:
        return import_callable(name, what)
    if name not in known:
        raise unknown_name(what, name, known)
    return known[name]


def checked_options(
    what: str,
    function: Callable[..., object],
    options: Mapping[str, OptionValue],
    limits: Mapping[str, Limits],
    inputs: Collection[str] = (),
) -> dict[str, OptionValue]:
    """Complete the given options with the function's defaults, and refuse what doesn't fit.

    Args:
        what: names the method in messages, e.g. "KD loss 'jsd'".
        function: the method; its keyword-only parameters are the options.
        options: name -> value, as configured.
        limits: name -> interval, for options that have one.
        inputs: keyword-only parameters that are data and not options.

    Returns:
        Every option with its value.

    Raises:
        ConfigError: an unknown or missing option, a wrong type, or a value out of range.
    """
    parameters = {
        parameter.name: parameter.default
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.name not in inputs
    }
    for name in options:
        if name not in parameters:
            raise unknown_name(f"option of {what}", name, parameters)
    values = {**parameters, **options}
    for name, value in values.items():
        if value is inspect.Parameter.empty:
            raise ConfigError(f"{what} needs the option {name!r}, which has no default; give it.")
        _check_value(f"{what}, option {name!r}", value, parameters[name], limits.get(name))
    return values


def _check_value(where: str, value: object, default: object, limits: Limits | None) -> None:
    """Refuse a value of another type than the default's, or out of its range."""
    if isinstance(default, bool | str):
        if type(value) is not type(default):
            expected = type(default).__name__
            raise ConfigError(f"{where}: expected a {expected} like {default!r}, got {value!r}.")
        return
    if limits is None and default is not inspect.Parameter.empty and not _is_number(default):
        return  # a user's option of a type of its own: theirs to check
    limits = limits or Limits()
    if not _is_number(value) or not limits.admits(value):
        raise ConfigError(f"{where}: expected a number in {limits}, got {value!r}.")


def _is_number(value: object) -> TypeGuard[float | int]:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class KDLoss:
    """A KD loss: picklable, and callable once its options are bound.

    Attributes:
        name: how a configuration calls it.
        function: no batch reduction, returns (*rows). In the space "log_probs" it takes
            (student_log_probs, teacher_log_probs), both at the temperature; in the space
            "logits" (student_logits, teacher_logits, temperature). `labels` and `mask` follow
            by keyword where needed. Its other keyword-only parameters are the options.
        space: "log_probs" or "logits".
        needs_labels: takes `labels` (*rows) int64.
        needs_mask: takes `mask` (*rows) bool or None, since it relates rows with each other.
        top_k: has a form over k + 1 buckets; only in the space "log_probs".
        limits: option -> interval.
        options: name -> value, as bound.
        scale_t2: whether each row is multiplied by its T².
    """

    name: str
    function: Callable[..., Tensor]
    space: Literal["log_probs", "logits"] = "logits"
    needs_labels: bool = False
    needs_mask: bool = False
    top_k: bool = False
    limits: Mapping[str, Limits] = field(default_factory=dict)
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    scale_t2: bool = False

    @classmethod
    def from_function(cls, name: str, function: Callable[..., Any]) -> "KDLoss":
        """Take in a user's function of (student_logits, teacher_logits, temperature).

        It needs `labels` or `mask` where it has such a parameter; its other keyword-only
        parameters are its options.
        """
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"KD loss {name!r} has no signature to read ({error}); wrap it in a function."
            ) from error
        return cls(
            name, function, needs_labels="labels" in parameters, needs_mask="mask" in parameters
        )

    def bind(self, options: Mapping[str, OptionValue], *, scale_t2: bool) -> "KDLoss":
        """Fix the options.

        Args:
            options: name -> value; the rest keep their defaults.
            scale_t2: multiply each row by its T².

        Raises:
            ConfigError: an unknown option or a value out of range.
        """
        checked = checked_options(
            f"KD loss {self.name!r}",
            self.function,
            options,
            self.limits,
            inputs=("labels", "mask"),
        )
        return replace(self, options=checked, scale_t2=scale_t2)

    def __call__(
        self,
        student_logits: Float[Tensor, "*rows classes"],
        teacher_logits: Float[Tensor, "..."] | TopK,
        temperature: float | int | Float[Tensor, "..."],
        labels: Int64[Tensor, "..."] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*rows"]:
        """Compute the loss of each row.

        Args:
            student_logits: (*rows, classes), raw.
            teacher_logits: the same shape, raw; or the k largest with their tail.
            temperature: a positive number, or one for each row.
            labels: (*rows) int64, for the losses that need them.
            mask: (*rows), True for valid rows; only for losses that relate rows.

        Returns:
            (*rows), in float32 at least. No mean is taken.

        Raises:
            ConfigError: shapes that don't fit, labels missing, no top-k form.
        """
        rows = student_logits.shape[:-1]
        if not isinstance(temperature, Tensor) and not temperature > 0:
            raise ConfigError(
                f"KD loss {self.name!r}: expected a temperature > 0, got {temperature}."
            )
        self._check_rows("temperature", temperature, rows)
        side_inputs: dict[str, Tensor | None] = {}
        if self.needs_labels:
            if labels is None:
                raise ConfigError(
                    f"KD loss {self.name!r} needs the true labels, and none came. Give the task a "
                    "label column, or take another loss, e.g. kl."
                )
            side_inputs["labels"] = labels
        if self.needs_mask:
            side_inputs["mask"] = mask
        for what, values in side_inputs.items():
            self._check_rows(what, values, rows)
        inputs = self._in_space(student_logits, teacher_logits, temperature)
        loss = self.function(*inputs, **side_inputs, **self.options)
        if loss.shape != rows:
            raise ConfigError(
                f"KD loss {self.name!r} returned the shape {tuple(loss.shape)}, expected one "
                f"value for each row, {tuple(rows)}; reduce over classes only."
            )
        return loss * temperature**2 if self.scale_t2 else loss

    def _in_space(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | TopK,
        temperature: float | int | Tensor,
    ) -> tuple[Tensor | float | int, ...]:
        """Bring the logits into the space of the loss."""
        if isinstance(teacher_logits, TopK):
            if not self.top_k:
                raise ConfigError(
                    f"KD loss {self.name!r} has no top-k form: it needs the logits of all classes. "
                    "Keep dense logits, or take ce, kl, reverse_kl, jsd, skew_kl, skew_reverse_kl "
                    "or tvd."
                )
            return bucket_log_probs(student_logits, teacher_logits, temperature)
        if student_logits.shape != teacher_logits.shape:
            raise ConfigError(
                f"KD loss {self.name!r}: the student's logits are "
                f"{tuple(student_logits.shape)}, the teacher's {tuple(teacher_logits.shape)}; they "
                "must be the same. Check the number of classes and the tokenizers."
            )
        if self.space == "logits":
            return student_logits, teacher_logits, temperature
        dtype = promoted(student_logits, teacher_logits)
        return (
            log_probs(student_logits, temperature, dtype),
            log_probs(teacher_logits, temperature, dtype),
        )

    def _check_rows(self, what: str, values: object, rows: torch.Size) -> None:
        """Refuse a tensor that hasn't one value for each row; a single temperature serves all."""
        if not isinstance(values, Tensor) or values.shape == rows:
            return
        if what == "temperature" and values.dim() == 0:
            return
        raise ConfigError(
            f"KD loss {self.name!r}: {what} has the shape {tuple(values.shape)}, expected one "
            f"value for each row, {tuple(rows)}."
        )
