"""What a job changes of a configuration: keys that it has, to values that make a model."""

import difflib
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from raybrew.errors import ConfigError
from raybrew.models.layers import layer_lists
from raybrew.models.pretrained import BUILD_ERRORS, first_line

__all__ = ["changed_config"]

# Keys of a configuration that the task decides, or that would make it another model.
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


def changed_config(
    config: PreTrainedConfig, changes: Mapping[str, Any], what: str
) -> PreTrainedConfig:
    """Return the configuration with changes, its own and transformers' common names allowed.

    Args:
        config: stays as it is.
        changes: values by key.
        what: name of the changes in the job, for messages.

    Raises:
        ConfigError: a key that the configuration hasn't got, or that the task decides; a value
            that it refuses.
    """
    values = config.to_dict()
    known = (set(values) | set(config.attribute_map)) - set(_FIXED_KEYS)
    named = {config.attribute_map.get(key, key): value for key, value in changes.items()}
    for key in changes:
        if key in _FIXED_KEYS:
            raise ConfigError(f"{what}.{key}: expected it left out, as {_FIXED_KEYS[key]}")
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=3)
            hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
            raise ConfigError(
                f"{what}.{key}: expected a key of a {config.model_type} configuration, "
                f"got {key!r}{hint}"
            )
    if config.attribute_map.get("num_hidden_layers", "num_hidden_layers") in named:
        for key in layer_lists(config):  # lists of the old length; the class makes new ones
            del values[key]
    try:
        return type(config).from_dict({**values, **named})
    except BUILD_ERRORS as error:
        raise ConfigError(
            f"{what}: expected a valid configuration, got: {first_line(error)}"
        ) from None
