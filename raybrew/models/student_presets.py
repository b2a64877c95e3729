"""The students of the TextBrewer paper by name: sizes, and the family where it differs.

    T6, T3, T3-small, T4-tiny, T12-nano   the base configuration in other sizes
    Electra-small                         ELECTRA, 12 layers of 256, embeddings of 128
    BiGRU                                 a bidirectional GRU of 768, see bigru.py

The base configuration is that of `tokenizer_from` or of the first teacher: a student speaks its
teachers' vocabulary.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from raybrew.errors import ConfigError
from raybrew.models.bigru import BiGruConfig
from raybrew.models.config_changes import changed_config
from raybrew.models.resizing import Builder, own_key

__all__ = ["PRESETS", "check_preset", "preset_config"]


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


_NOT_EVERYWHERE = ("intermediate_size", "num_attention_heads")
"""Sizes that some families have no key for; `check_preset` looks at the model then."""


def preset_config(name: str, base: PreTrainedConfig, what: str, build: Builder) -> PreTrainedConfig:
    """Return the configuration of a preset.

    Args:
        name: a key of `PRESETS`.
        base: whose vocabulary it has, and whose family where the preset names none.
        what: the field of the job, for messages.
        build: makes a model without weights; see `resized`.

    Raises:
        ConfigError: models of this family can't have the preset's sizes.
    """
    changes = dict(PRESETS[name])
    family = changes.pop("model_type", base.model_type)
    if family == base.model_type:
        if base.is_encoder_decoder:
            raise ConfigError(
                f"{what}: expected a base of one stack of layers, whose sizes {name} stands for, "
                f"got a {base.model_type}, which has an encoder and a decoder; give its sizes in "
                "`config` instead"
            )
        known = base.to_dict()
        lacking = {key for key in _NOT_EVERYWHERE if own_key(base, key) not in known}
        sizes = {key: value for key, value in changes.items() if key not in lacking}
        return changed_config(base, sizes, what, build)
    known = AutoConfig.for_model(family)
    kept = {key: getattr(base, key) for key in _KEPT if hasattr(base, key) and hasattr(known, key)}
    return AutoConfig.for_model(family, **kept, **changes)


def check_preset(name: str, model: nn.Module, what: str) -> None:
    """Refuse a model whose layers haven't got the preset's sizes, whatever its keys are called.

    Args:
        name: a key of `PRESETS`.
        model: of its configuration; weights aren't looked at.
        what: the field of the job, for messages.

    Raises:
        ConfigError: no weight leads from the hidden size to that of the feed-forward network.
    """
    hidden, feed_forward = PRESETS[name]["hidden_size"], PRESETS[name].get("intermediate_size")
    shapes = {frozenset(weight.shape) for weight in model.parameters()}
    if feed_forward is not None and frozenset((hidden, feed_forward)) not in shapes:
        raise ConfigError(
            f"{what}: expected a base whose layers can have a hidden size of {hidden} and a "
            f"feed-forward size of {feed_forward}, which {name} stands for, got a "
            f"{type(model).__name__}, whose layers are others; give its sizes in `config` instead"
        )
