"""Activations that are computed again in the backward pass, instead of being kept."""

from torch import nn
from transformers import PreTrainedModel

from raybrew.errors import ConfigError

__all__ = ["compute_layers_again"]


def compute_layers_again(student: nn.Module) -> None:
    """Turn gradient checkpointing on.

    Args:
        student: a model of transformers, or one of several tasks, each of whose models is meant.

    Raises:
        ConfigError: the model can't.
    """
    for model in student.modules():
        if not isinstance(model, PreTrainedModel) or model is model.base_model:
            continue
        if not model.supports_gradient_checkpointing:
            raise ConfigError(
                f"training.gradient_checkpointing: expected a student that can compute its layers "
                f"again, got {type(model).__name__}, which can't; leave it out"
            )
        # Earlier releases of transformers 5 know it by another name.
        name = "activation_checkpointing_enable"
        enable = getattr(model, name, model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
