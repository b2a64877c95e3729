"""Kinds of projections by name: what builds the map from the student's size to the teacher's."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from raybrew.errors import ConfigError
from raybrew.losses.soft.options import unknown_name
from raybrew.models.importing import import_callable

__all__ = ["PROJECTIONS", "as_projection", "projection_builder"]

INITIAL_STD = 0.02


def as_projection(name: str, value: Any) -> Callable[[int, int], nn.Module]:
    """Take in a projection of the user's: (student's size, teacher's size) -> module.

    Raises:
        ConfigError: it can't be called.
    """
    if not callable(value):
        raise ConfigError(
            f"Projection {name!r}: expected a function of the student's and the teacher's size "
            f"that builds a module, got {type(value).__name__}."
        )
    builder: Callable[..., Any] = value
    return builder


def projection_builder(kind: str) -> Callable[[int, int], nn.Module]:
    """Find a projection by name, or the user's by its import path.

    Raises:
        ConfigError: neither leads anywhere.
    """
    if ":" in kind:
        return import_callable(kind, "projection")
    if kind not in PROJECTIONS:
        raise unknown_name("projection", kind, PROJECTIONS)
    return PROJECTIONS[kind]


def _mapped(student_size: int, teacher_size: int, activation: type[nn.Module]) -> nn.Module:
    """Build act(W x + b), W from N(0, 0.02²), b = 0, as TextBrewer does."""
    linear = nn.Linear(student_size, teacher_size)
    nn.init.normal_(linear.weight, std=INITIAL_STD)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, activation())


PROJECTIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": partial(_mapped, activation=nn.Identity),
    "relu": partial(_mapped, activation=nn.ReLU),
    "tanh": partial(_mapped, activation=nn.Tanh),
}
