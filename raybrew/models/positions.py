"""How many tokens a model reads at most: as many as its table of positions has rows, if it has one.

BERT      rows 0 … n - 1          RoBERTa   rows pad + 1 … n - 1     BART    rows 2 … n + 1
relative positions (T5, DeBERTa-v3, XLNet) and rotary ones (Llama, ModernBERT): no table
"""

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

__all__ = ["enough_positions", "most_positions", "trained_positions"]

_POSITIONS = re.compile(r"(^|_)(wpe|pos|positions?)(_|$)")
"""What tables of positions are called: position_embeddings, embed_positions, wpe, pos_encoding."""


def trained_positions(config: PreTrainedConfig) -> int | None:
    """Return how many positions a model was made for; None where its configuration says none."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    # XLNet writes -1: any length.
    return positions if isinstance(positions, int) and positions > 0 else None


def enough_positions(config: PreTrainedConfig, length: int) -> bool:
    """Return whether a text of `length` tokens fits for certain, without a look at the model."""
    positions = trained_positions(config)
    # Models reserve a few rows of their table, never half of it.
    return positions is None or length <= positions // 2


def most_positions(model: nn.Module) -> int | None:
    """Return the most tokens of an input; None where no table of positions limits it.

    Args:
        model: with a configuration; weights aren't looked at.
    """
    config = model.config
    assert isinstance(config, PreTrainedConfig), "a model of transformers has a configuration"
    positions = trained_positions(config)
    if positions is None:
        return None
    limits = [
        min(positions, len(table) - first)
        for table, first in _tables(model)
        # Smaller ones are of something else, such as distances.
        if table.dim() == 2 and len(table) >= positions
    ]
    return min(limits, default=None)


def _tables(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """Yield each table of positions with the row of a text's first token."""
    for name, module in model.named_modules():
        weight: object = getattr(module, "weight", None)
        # I-BERT has a class of embeddings of its own, with the same attributes.
        if not (isinstance(weight, Tensor) and hasattr(module, "padding_idx")):
            continue
        if _POSITIONS.search(name.rpartition(".")[2]):
            padding: Any = module.padding_idx
            # Padding has a row of its own, and positions begin behind it.
            yield weight, getattr(module, "offset", 0) if padding is None else padding + 1
    for name, buffer in model.named_buffers():
        # Not the numbers of the positions themselves.
        if _POSITIONS.search(name.rpartition(".")[2]) and buffer.is_floating_point():
            yield buffer, 0
