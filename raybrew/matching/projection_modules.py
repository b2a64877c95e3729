"""Query, key and value vectors: outputs of the linear modules that make them in each layer."""

from torch import Tensor, nn
from transformers import PreTrainedModel

from raybrew.errors import ConfigError
from raybrew.models.layers import layer_stack

__all__ = ["VECTORS", "projection_module", "split_heads"]

VECTORS = {
    "query": ("query", "q_lin", "q_proj", "query_proj", "q"),
    "key": ("key", "k_lin", "k_proj", "key_proj", "k"),
    "value": ("value", "v_lin", "v_proj", "value_proj", "v"),
}
"""By feature, how models call the module that makes it."""


def projection_module(model: nn.Module, feature: str, layer: int, what: str) -> str:
    """Return the name of the module whose output is a layer's query, key or value.

    Args:
        model: a transformers model.
        feature: a key of `VECTORS`.
        layer: from 0.
        what: whose message an error is.

    Raises:
        ConfigError: the layer has no such module, or several.
    """
    assert isinstance(model, PreTrainedModel), "matches on query, key and value read transformers"
    prefix = f"{layer_stack(model)}.{layer}."
    found = [
        name
        for name, module in model.named_modules()
        if name.startswith(prefix)
        and name.rpartition(".")[2] in VECTORS[feature]
        and hasattr(module, "weight")
    ]
    if len(found) != 1:
        raise ConfigError(
            f"{what}: expected one module for the {feature} vectors in {prefix[:-1]} of "
            f"{type(model).__name__} (named {', '.join(VECTORS[feature])}), got "
            f"{', '.join(found) or 'none'}; match hidden states instead"
        )
    return found[0]


def split_heads(model: nn.Module, vectors: Tensor) -> Tensor:
    """Cut the vectors of all heads side by side, (B, L, A·d), into (B, A, L, d)."""
    config = getattr(model, "config")  # noqa: B009  nn.Module types its attributes as tensors
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return vectors.unflatten(-1, (-1, size)).transpose(1, 2)
