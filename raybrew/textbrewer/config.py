"""What TextBrewer's two configs have in common: made from a dict or a JSON file, and printable."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from raybrew.errors import ConfigError, did_you_mean


class Config:
    """Base of `TrainingConfig` and `DistillationConfig`."""

    @classmethod
    def from_json_file(cls, json_filename: str | Path) -> Self:
        """Make a config from a JSON file.

        Raises:
            ConfigError: it can't be read, or holds a key that isn't known.
        """
        try:
            values = json.loads(Path(json_filename).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{cls.__name__}: expected a JSON file, got {str(json_filename)!r}: {error}"
            ) from error
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, dict_object: Mapping[str, Any]) -> Self:
        """Make a config from a dict of its arguments.

        Raises:
            ConfigError: an argument that isn't known; names the nearest.
        """
        known = [name for name in inspect.signature(cls).parameters if name != "self"]
        for key in dict_object:
            if key not in known:
                raise ConfigError(
                    f"{cls.__name__}: expected one of {', '.join(known)}, got {key!r}"
                    f"{did_you_mean(key, known)}"
                )
        return cls(**dict_object)

    def told(self) -> dict[str, str]:
        """Return the settings in words."""
        return {key: str(value) for key, value in vars(self).items() if not key.startswith("_")}

    def __str__(self) -> str:
        return "".join(f"{key} : {value}\n" for key, value in self.told().items())

    def __repr__(self) -> str:
        return f"{type(self).__name__}:\n{self}"
