"""A student's first forward pass, before any teacher is loaded."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from raybrew.errors import ConfigError
from raybrew.models.positions import most_positions
from raybrew.models.pretrained import (
    first_line,
    meta_model,
    own_generator,
    quiet_transformers,
    random_model,
)

__all__ = ["check_runs"]

_TOKENS = 16
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def check_runs(
    model_class: Any,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    what: str,
) -> None:
    """Refuse a model that can be built and can't read a batch.

    Args:
        model_class: transformers' class for models with the head of a kind of task.
        config: of the model.
        tokenizer: that encodes for it.
        what: the model in the job, for messages.

    Raises:
        ConfigError: its first forward pass fails.
    """
    model = meta_model(model_class, config, what)
    batch = _batch(tokenizer, min(_TOKENS, most_positions(model) or _TOKENS))
    try:
        # Only this way of computing attention asks nothing of the mask's values.
        model.set_attn_implementation("eager")
        _run(model, {name: tensor.to("meta") for name, tensor in batch.items()})
        return
    except Exception:
        pass  # also models that are fine, but look at values: memory will show
    try:
        with own_generator(0):
            _run(random_model(model_class, config), batch)
    except Exception as error:  # of whatever class: it comes from the model's own code
        raise ConfigError(
            f"{what}: expected a model that reads texts as they are encoded for it, got a "
            f"{type(model).__name__} whose first forward pass fails: {first_line(error)}; change "
            "the sizes in its configuration that don't fit each other"
        ) from error


def _batch(tokenizer: PreTrainedTokenizerBase, length: int) -> Mapping[str, Tensor]:
    encoded = tokenizer(
        ["a " * length] * 2,
        truncation=True,
        padding="max_length",
        max_length=length,
        return_tensors="pt",
    )
    return {name: encoded[name] for name in _INPUTS if name in encoded}


@torch.no_grad()
def _run(model: Any, batch: Mapping[str, Tensor]) -> None:
    with quiet_transformers():
        model.train()(**batch)
