"""The students of the TextBrewer paper by name: sizes, and the family where it differs.

    T6, T3, T3-small, T4-tiny, T12-nano   the base configuration in other sizes
    Electra-small                         ELECTRA, 12 layers of 256, embeddings of 128
    BiGRU                                 a bidirectional GRU of 768, see bigru.py

The base configuration is that of `tokenizer_from` or of the first teacher: a student speaks its
teachers' vocabulary.
"""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from raybrew.models.bigru import BiGruConfig

__all__ = ["PRESETS", "preset_config"]


def _sizes(layers: int, hidden: int, feed_forward: int, heads: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_attention_heads": heads,
    }


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "T6": _sizes(6, 768, 3072, 12),
    "T3": _sizes(3, 768, 3072, 12),
    "T3-small": _sizes(3, 384, 1536, 12),
    "T4-tiny": _sizes(4, 312, 1200, 12),
    "T12-nano": _sizes(12, 256, 1024, 4),
    "Electra-small": {
        "model_type": "electra",
        "embedding_size": 128,
        **_sizes(12, 256, 1024, 4),
    },
    "BiGRU": {
        "model_type": BiGruConfig.model_type,
        "hidden_size": 768,
        "num_hidden_layers": 1,
    },
}
"""Changes to the base configuration, by name."""

_KEPT = ("vocab_size", "pad_token_id", "max_position_embeddings", "type_vocab_size")


def preset_config(name: str, base: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of a preset.

    Args:
        name: a key of `PRESETS`.
        base: whose vocabulary it has, and whose family where the preset names none.
    """
    changes = dict(PRESETS[name])
    family = changes.pop("model_type", base.model_type)
    if family == base.model_type:
        return type(base).from_dict({**base.to_dict(), **changes})
    known = AutoConfig.for_model(family)
    kept = {key: getattr(base, key) for key in _KEPT if hasattr(base, key) and hasattr(known, key)}
    return AutoConfig.for_model(family, **kept, **changes)
