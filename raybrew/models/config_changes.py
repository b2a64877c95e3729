"""What a job changes of a configuration: keys that it has, to values that make a model."""

import difflib
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from raybrew.errors import ConfigError
from raybrew.models.resizing import Builder, own_key, resized

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
            near = difflib.get_close_matches(key, sorted(known), n=3)
            hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
            raise ConfigError(
                f"{what}.{key}: expected a key of a {config.model_type} configuration, "
                f"got {key!r}{hint}"
            )
    named = {own_key(config, key): value for key, value in changes.items()}
    return resized(config, named, what, build)
