"""TextBrewer's distillation configs, as dicts or JSON files, in this package's words.

temperature_scheduler  ["flsw", 1, 2]        ──► temperature_scheduler, …_options
*_weight_scheduler     "none" | a name       ──► the same; the weight is 1, as TextBrewer puts
                                                 the schedule's value in its place
kd_loss_type           "ce" | "mse"          ──► kd_loss
intermediate_matches   list of matches       ──► matches
is_caching_logits      true | false          ──► nothing: labels are always kept
"""

import json
import logging
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from raybrew.errors import ConfigError
from raybrew.paths import user_path

__all__ = ["converted", "is_textbrewer"]

logger = logging.getLogger(__name__)

_OWN_KEYS = ("kd_loss_type", "intermediate_matches", "is_caching_logits")
_SCHEDULERS = (
    "temperature_scheduler",
    "kd_loss_weight_scheduler",
    "hard_label_weight_scheduler",
)
_SAME = ("temperature", "kd_loss_weight", "hard_label_weight", "probability_shift")
_KEYS = (*_SAME, *_SCHEDULERS, *_OWN_KEYS)
_WEIGHT_SCHEDULES = ("linear_decay", "linear_growth")
_SCHEDULER_ARGUMENTS = {"constant": (), "flsw": ("beta", "gamma"), "cwsm": ("beta",)}


def is_textbrewer(given: Any) -> bool:
    """Whether a distillation section is TextBrewer's: a JSON file, or a dict with its words.

    A dict of keys that both have means the same in either.
    """
    if isinstance(given, str | Path):
        return True
    return isinstance(given, Mapping) and (
        any(key in given for key in _OWN_KEYS)
        or any(_is_textbrewers_scheduler(given.get(key)) for key in _SCHEDULERS)
    )


def converted(given: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """Turn TextBrewer's `DistillationConfig` into the values of ours.

    Args:
        given: a dict of its arguments, or the path of a JSON file with them.

    Returns:
        Values of `raybrew.DistillationConfig`.

    Raises:
        ConfigError: the file can't be read, or holds a key or a value that TextBrewer doesn't know.
    """
    values = dict(given) if isinstance(given, Mapping) else _read(given)
    for key in values:
        if key not in _KEYS:
            near = get_close_matches(key, _KEYS, n=2)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ConfigError(
                f"{key!r}: expected a key of TextBrewer's DistillationConfig "
                f"({', '.join(_KEYS)}), since there are keys of TextBrewer's; got another{hint}"
            )
    result = {key: values[key] for key in _SAME if key in values}
    result |= _temperature_scheduler(values.get("temperature_scheduler", "none"))
    for weight in ("kd_loss_weight", "hard_label_weight"):
        result |= _weight_scheduler(weight, values)
    if "kd_loss_type" in values:
        result["kd_loss"] = values["kd_loss_type"]
    matches = values.get("intermediate_matches")
    if matches:
        if not isinstance(matches, list | tuple):
            raise ConfigError(f"intermediate_matches: expected a list of matches, got {matches!r}")
        result["matches"] = list(matches)
    return result


def _is_textbrewers_scheduler(value: Any) -> bool:
    return value == "none" or isinstance(value, list | tuple)


def _read(given: str | Path) -> dict[str, Any]:
    path = user_path(given, "TextBrewer's JSON file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"expected a mapping, or a JSON file of TextBrewer's, got {str(path)!r}: {error}"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"expected a JSON object in {str(path)!r}, got {type(values).__name__}")
    return values


def _temperature_scheduler(given: Any) -> dict[str, Any]:
    if given is None or given == "none":
        return {}
    name, *arguments = (given or [None]) if isinstance(given, list | tuple) else [given]
    known = _SCHEDULER_ARGUMENTS.get(name) if isinstance(name, str) else None
    if known is None:
        raise ConfigError(
            f"temperature_scheduler: expected one of {', '.join(_SCHEDULER_ARGUMENTS)}, got "
            f"{name if isinstance(name, str) else given!r}"
        )
    if len(arguments) == 1 and isinstance(arguments[0], Mapping):
        options = dict(arguments[0])
    elif len(arguments) == len(known):
        options = dict(zip(known, arguments, strict=True))
    else:
        raise ConfigError(
            f"temperature_scheduler: {name} takes {', '.join(known) or 'no arguments'}, got "
            f"{arguments}"
        )
    return {"temperature_scheduler": name, "temperature_scheduler_options": options}


def _weight_scheduler(weight: str, values: Mapping[str, Any]) -> dict[str, Any]:
    key = f"{weight}_scheduler"
    name = values.get(key, "none")
    if name is None or name == "none":
        return {}
    if name not in _WEIGHT_SCHEDULES:
        raise ConfigError(f"{key}: expected one of {', '.join(_WEIGHT_SCHEDULES)}, got {name!r}")
    given = values.get(weight, 1.0)
    if given != 1:
        # There the schedule's value takes the weight's place after the first step.
        logger.info("%s %s is not used: TextBrewer's %s replaces it", weight, given, key)
    return {weight: 1.0, key: name}
