"""A configuration with some values changed, and with what hangs on them.

    hidden_size: 16  ──► pooler_hidden_size, head_dim, … where they were what the class makes of it
    4 layers ──► 2   ──► lists with an entry for each layer, such as layer_types: as many entries

What hangs on what is asked of the configuration's class, so that no family has to be known here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from raybrew.errors import ConfigError
from raybrew.models.pretrained import first_line

__all__ = ["Builder", "own_key", "resized"]

Builder = Callable[[PreTrainedConfig], object]
"""Makes the model of a configuration without its weights; raises where there is none."""

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

_ABSENT = object()


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
    except Exception as error:  # of whatever class: it comes from the configuration's own
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
    found = {
        key
        for key in values
        if key not in _ABOUT and _made(config, values, {key}).get(key, _ABSENT) == values[key]
    }
    # Two may follow from each other: then neither can be left out with the other.
    while True:
        made = _made(config, values, found)
        wrong = {key for key in found if made.get(key, _ABSENT) != values[key]}
        if not wrong:
            return found
        found -= wrong


def _layer_lists(config: PreTrainedConfig, build: Builder) -> dict[str, list[Any]]:
    """Return the lists with one entry for each layer.

    A list of so many entries may be of something else. Of one layer more, the class makes a list
    that is longer by one, or refuses the list as it is to build a model.
    """
    values, key_of_number = config.to_dict(), own_key(config, "num_hidden_layers")
    lists = {
        key: list(value)
        for key, value in values.items()
        if key not in _ABOUT
        and isinstance(value, (list, tuple))
        and len(value) == values.get(key_of_number)
    }
    if not lists:
        return {}
    number = len(next(iter(lists.values())))
    more = {**values, key_of_number: number + 1}
    made, of_more = _made(config, values, lists), _made(config, more, lists)
    found = {
        key for key in lists if (_length(made, key), _length(of_more, key)) == (number, number + 1)
    }

    def builds(longer: set[str]) -> bool:
        changed = {key: [*lists[key], lists[key][-1]] for key in longer}
        return _builds(config, {**more, **changed}, build)

    needed = set(lists)
    if not builds(needed):  # that so many layers make no model has another reason
        return {key: lists[key] for key in found}
    for key in sorted(needed - found):
        if builds(needed - {key}):
            needed.remove(key)
    return {key: lists[key] for key in needed}


def _made(config: PreTrainedConfig, values: Mapping[str, Any], without: Any) -> dict[str, Any]:
    """Return what the class makes of values without some of them; nothing if it refuses."""
    try:
        kept = {key: value for key, value in values.items() if key not in without}
        return type(config).from_dict(kept).to_dict()
    except Exception:
        return {}


def _builds(config: PreTrainedConfig, values: Mapping[str, Any], build: Builder) -> bool:
    try:
        build(type(config).from_dict(dict(values)))
    except Exception:
        return False
    return True


def _length(values: Mapping[str, Any], key: str) -> int | None:
    value = values.get(key)
    return len(value) if isinstance(value, (list, tuple)) else None
