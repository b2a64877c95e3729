"""What of a student learns: all of it, what isn't frozen, or adapters and heads."""

from torch import nn
from transformers import PreTrainedModel

from raybrew.config import Student
from raybrew.models.freezing import freeze
from raybrew.models.lora import add_adapters, check_adapters

__all__ = ["check_learning", "limit_learning"]


def check_learning(model: nn.Module, student: Student, what: str) -> None:
    """Check what a job says of it on a model without weights.

    Raises:
        ConfigError: parameters to freeze, or layers to adapt, that the model hasn't got.
    """
    freeze(model, student.freeze, f"{what}.freeze")
    if student.lora is not None:
        check_adapters(_trunk(model), student.lora, f"{what}.lora")


def limit_learning(model: nn.Module, student: Student, what: str) -> None:
    """Freeze and adapt a model as the job says; adapters are drawn from the global generator."""
    freeze(model, student.freeze, f"{what}.freeze")
    if student.lora is not None:
        add_adapters(_trunk(model), student.lora, f"{what}.lora")


def _trunk(model: nn.Module) -> nn.Module:
    return model.base_model if isinstance(model, PreTrainedModel) else model.get_submodule("trunk")
