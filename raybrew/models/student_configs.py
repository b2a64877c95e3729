"""Configurations of students: presets, changed keys, and the values that follow from other sizes.

    hidden_size: 16  ──► pooler_hidden_size, head_dim, … where they were what the class makes of it
    4 layers ──► 2   ──► lists with an entry for each layer, such as layer_types: as many entries

The configuration's class shows what follows from what, so that no family has to be known here. The
presets are the students of the TextBrewer paper by name:

    T6, T3, T3-small, T4-tiny, T12-nano   the base configuration in other sizes
    Electra-small                         ELECTRA, 12 layers of 256, embeddings of 128
    BiGRU                                 a bidirectional GRU of 768, see bigru.py

The base configuration is that of `tokenizer_from` or of the first teacher: a student has its
teachers' vocabulary.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from raybrew.errors import ConfigError, did_you_mean
from raybrew.models.bigru import BiGruConfig
from raybrew.models.pretrained import first_line

Builder = Callable[[PreTrainedConfig], object]
"""Makes the model of a configuration without its weights; raises where there is none."""


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

_OF_THE_BASE = ("vocab_size", "pad_token_id", "max_position_embeddings", "type_vocab_size")
"""What a preset of another family takes of the base configuration."""
_NOT_EVERYWHERE = ("intermediate_size", "num_attention_heads")
"""Sizes that some families have no key for; `check_preset` looks at the model then."""
_FEED_FORWARD = (
    "hidden_dim",
    "d_ff",
    "d_inner",
    "n_inner",
    "ffn_dim",
    "dff",
    "feed_forward_size",
)
"""What families call `intermediate_size`, which transformers has no common name for."""
_ABOUT = ("architectures", "id2label", "label2id", "model_type", "transformers_version", "dtype")
"""Keys that are no sizes."""
_FIXED_KEYS = {
    "architectures": "the task's kind decides",
    "dtype": "the student's weights are float32; see training.precision",
    "id2label": "the task's label_names decide",
    "label2id": "the task's label_names decide",
    "model_type": "the base configuration decides; see tokenizer_from",
    "num_labels": "the task's label_names decide",
    "problem_type": "the task's kind decides",
    "transformers_version": "transformers writes it",
}
"""Keys that the task decides, or that would make it another model."""
_ABSENT = object()


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
    own = AutoConfig.for_model(family)
    shared = [key for key in _OF_THE_BASE if hasattr(base, key) and hasattr(own, key)]
    return AutoConfig.for_model(family, **{key: getattr(base, key) for key in shared}, **changes)


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


def changed_config(
    config: PreTrainedConfig, changes: Mapping[str, Any], what: str, build: Builder
) -> PreTrainedConfig:
    """Return the configuration with changes, its own and transformers' common names allowed.

    Args:
        config: stays as it is.
        changes: values by key.
        what: name of the changes in the job, for messages.
        build: makes a model without weights; see `resized`.

    Raises:
        ConfigError: a key that the configuration hasn't got, or that the task decides; a value
            that it refuses.
    """
    values = config.to_dict()
    known = (set(values) | set(config.attribute_map)) - set(_FIXED_KEYS)
    for key in changes:
        if key in _FIXED_KEYS:
            raise ConfigError(f"{what}.{key}: expected it left out, as {_FIXED_KEYS[key]}")
        if own_key(config, key) not in known:
            raise ConfigError(
                f"{what}.{key}: expected a key of a {config.model_type} configuration, "
                f"got {key!r}{did_you_mean(key, known)}"
            )
    named = {own_key(config, key): value for key, value in changes.items()}
    return resized(config, named, what, build)


def own_key(config: PreTrainedConfig, key: str) -> str:
    """Return a configuration's own name for one of transformers' common names."""
    own = config.attribute_map.get(key, key)
    if own != "intermediate_size" or hasattr(config, own):
        return own
    return next((name for name in _FEED_FORWARD if hasattr(config, name)), own)


def resized(
    config: PreTrainedConfig,
    changes: Mapping[str, Any],
    what: str,
    build: Builder,
    layers: Sequence[int] | None = None,
) -> PreTrainedConfig:
    """Return a configuration with changes and what follows from them.

    Args:
        config: stays as it is.
        changes: values by the configuration's own keys.
        what: where they are in the job, for messages.
        build: tells which lists have an entry for each layer.
        layers: of `config`, which of its layers each one is; None where they are new ones.

    Raises:
        ConfigError: its class refuses the values, or a list of entries has to be given as well.
    """
    following = _following(config) - changes.keys()
    values = {k: v for k, v in config.to_dict().items() if k not in following}
    try:
        num_layers = changes.get(own_key(config, "num_hidden_layers"))
        if num_layers is not None:
            for key, entries in _layer_lists(config, build).items():
                if key in changes or (layers is None and key in following):
                    continue
                values[key] = _entries(entries, num_layers, layers, f"{what}.{key}")
        return type(config).from_dict({**values, **changes})
    except ConfigError:
        raise
    except Exception as error:  # of any class: it comes from the configuration's own
        raise ConfigError(
            f"{what}: expected a valid configuration, got: {first_line(error)}"
        ) from error


def _entries(old: list[Any], number: int, layers: Sequence[int] | None, what: str) -> list[Any]:
    if layers is not None:
        return [old[layer] for layer in layers]
    if len(old) == number:
        return old
    if any(entry != old[0] for entry in old):
        raise ConfigError(
            f"{what}: expected a list with an entry for each of the {number} layers, as those of "
            f"the {len(old)} layers that it starts from are different, got none"
        )
    return old[:1] * number


def _following(config: PreTrainedConfig) -> set[str]:
    """Return the keys whose values the class gives by itself, out of the others or always."""
    values = config.to_dict()

    def follow(keys: Collection[str]) -> set[str]:
        made = _made(config, {key: value for key, value in values.items() if key not in keys})
        return {key for key in keys if made.get(key, _ABSENT) == values[key]}

    found = {key for key in values if key not in _ABOUT and follow({key})}
    # Two may follow from each other: then neither can be left out with the other.
    while (still := follow(found)) != found:
        found = still
    return found


def _layer_lists(config: PreTrainedConfig, build: Builder) -> dict[str, list[Any]]:
    """Return the lists with one entry for each layer.

    A list of so many entries may be of something else. Of one layer more, the class makes a list
    that is longer by one, or refuses the list as it is to build a model.
    """
    values, key_of_number = config.to_dict(), own_key(config, "num_hidden_layers")
    number: int = values.get(key_of_number, -1)
    lists = {
        key: list(value)
        for key, value in values.items()
        if key not in _ABOUT and _length(value) == number
    }
    if not lists:
        return {}
    more = {**values, key_of_number: number + 1}
    made, of_more = (
        _made(config, {key: value for key, value in each.items() if key not in lists})
        for each in (values, more)
    )
    found = {
        key
        for key in lists
        if (_length(made.get(key)), _length(of_more.get(key))) == (number, number + 1)
    }

    def builds(longer: set[str]) -> bool:
        changed = {key: [*lists[key], lists[key][-1]] for key in longer}
        try:
            build(type(config).from_dict({**more, **changed}))
        except Exception:  # of any class: it comes from the configuration's or the model's own
            return False
        return True

    needed = set(lists)
    if not builds(needed):  # that so many layers make no model has another reason
        return {key: lists[key] for key in found}
    for key in sorted(needed - found):
        if builds(needed - {key}):
            needed.remove(key)
    return {key: lists[key] for key in needed}


def _made(config: PreTrainedConfig, values: dict[str, Any]) -> dict[str, Any]:
    """Return what the class makes of values; nothing if it refuses."""
    try:
        return type(config).from_dict(values).to_dict()
    except Exception:
        return {}


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, (list, tuple)) else None
