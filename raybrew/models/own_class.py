"""A class of models of the user's, with the two methods that transformers' Auto classes have.

    from_config      random weights                from_pretrained  what `save_pretrained` wrote

The contract: a subclass of `transformers.PreTrainedModel` with a `config_class` of its own type,
whose `forward` takes `input_ids` and `attention_mask`; what it returns is for the adaptor to say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from raybrew.errors import ConfigError
from raybrew.models.importing import import_callable

__all__ = ["OwnClass", "own_class"]


@dataclass(frozen=True)
class OwnClass:
    """The class in the place of an Auto class.

    Args:
        wrapped: the user's.
    """

    wrapped: type[PreTrainedModel]

    @property
    def __name__(self) -> str:
        return self.wrapped.__name__

    def config_beside(self, base: PreTrainedConfig) -> PreTrainedConfig:
        """Return a configuration of this class for the vocabulary of another model."""
        own: Any = self.wrapped.config_class
        if isinstance(base, own):
            return base
        vocabulary = base.get_text_config()
        return own(vocab_size=vocabulary.vocab_size, pad_token_id=vocabulary.pad_token_id)

    def from_config(
        self, config: PreTrainedConfig, dtype: torch.dtype = torch.float32
    ) -> PreTrainedModel:
        """Build a model with random weights, as transformers' Auto classes do."""
        return self.wrapped._from_config(config, dtype=dtype)

    def from_pretrained(self, path: str, **options: Any) -> Any:
        """Load a model that `save_pretrained` wrote."""
        del options["trust_remote_code"]  # its code is here
        return self.wrapped.from_pretrained(path, **options)


def own_class(target: Callable[..., Any] | str, what: str) -> OwnClass:
    """Resolve a class or its import path, and let transformers know the type of its configuration.

    Args:
        target: either.
        what: field of the job, for messages.

    Raises:
        ConfigError: nothing is there, or it isn't such a class.
    """
    found = import_callable(target, what)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ConfigError(
            f"{what}: expected a subclass of transformers.PreTrainedModel, got {target!r}"
        )
    config_class = found.config_class
    if not isinstance(config_class, type) or not issubclass(config_class, PreTrainedConfig):
        raise ConfigError(
            f"{what}: expected {found.__name__}.config_class to be a class of configurations "
            f"(a subclass of transformers.PreTrainedConfig), got {config_class!r}"
        )
    if not config_class.model_type:
        raise ConfigError(
            f"{what}: expected {config_class.__name__}.model_type to name its type, got ''"
        )
    if config_class.model_type not in CONFIG_MAPPING:
        AutoConfig.register(config_class.model_type, config_class)
    return OwnClass(found)
