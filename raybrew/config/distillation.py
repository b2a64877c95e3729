"""The objective: temperature, losses, weights, mixture, matches; also from TextBrewer's dicts."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from raybrew.config.mistakes import explain
from raybrew.config.section import (
    Options,
    Section,
    changed_fields,
    import_path_of,
    user_path,
)
from raybrew.errors import ConfigError, did_you_mean

# Matches as a job gives them: names stay names until the sizes of the models are known.
#
# "L3_hidden_mse"                                       a preset, or a family of matches
# {preset: hidden_mse, teacher: a, weight: 0.5}         the same, of a teacher
# {preset: hidden_mse, every: 2}                        at every second layer of the student
# {layer_T: 4, layer_S: 1, feature: hidden, loss: …}    a match between layers
# {module_T: …, module_S: …, loss: pkg.mod:name}        a match between any two modules


class MatchPreset(Section):
    """All matches of a preset or of a family, with one teacher."""

    preset: str = Field(description="Name of a preset, such as L3_hidden_mse, or of a family.")
    teacher: str | None = Field(
        default=None, description="Name of the teacher; none where a task has one."
    )
    weight: float = Field(default=1.0, description="Factor on the weight of each match.")
    every: int = Field(
        default=1,
        ge=1,
        description="Match only every n-th layer of the student; for families of matches.",
    )


def _as_matches(value: Any) -> tuple[Any, ...]:
    several = isinstance(value, Sequence) and not isinstance(value, str)
    entries = list(value) if several else [] if value is None else [value]
    return tuple(_as_match(entry, position) for position, entry in enumerate(entries))


def _as_match(entry: Any, position: int) -> Any:
    if isinstance(entry, str | MatchPreset):
        return entry
    # They import torch, which a job without matches doesn't need.
    from raybrew.matches.spec import CustomMatch, MatchSpec

    if isinstance(entry, MatchSpec | CustomMatch):
        return entry
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"match {position}: expected a name, a mapping, a MatchSpec or a CustomMatch, got "
            f"{type(entry).__name__}"
        )
    if "preset" in entry:
        model: type[BaseModel] = MatchPreset
    else:
        model = CustomMatch if {"module_T", "module_S"} & entry.keys() else MatchSpec
    try:
        return model.model_validate(dict(entry))
    except ValidationError as error:
        raise ValueError(f"match {position}: {explain(error, model, between='; ')}") from None


def _to_plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_to_plain(each) for each in value]
    if isinstance(value, BaseModel):
        return {name: _to_plain(getattr(value, name)) for name in changed_fields(value)}
    return import_path_of(value) if callable(value) else value


if TYPE_CHECKING:
    # A script may give a name, a mapping, or a list of them.
    Matches: TypeAlias = Any
else:
    Matches = Annotated[tuple[Any, ...], BeforeValidator(_as_matches), PlainSerializer(_to_plain)]
"""What `resolve_matches` and the geometry of the models turn into matches."""


# TextBrewer's distillation configs, as dicts or JSON files, in this package's words.
#
# temperature_scheduler  ["flsw", 1, 2]        ──► temperature_scheduler, …_options
# *_weight_scheduler     "none" | a name       ──► the same; the weight is 1, as TextBrewer puts
#                                                  the schedule's value in its place
# kd_loss_type           "ce" | "mse"          ──► kd_loss
# intermediate_matches   list of matches       ──► matches
# is_caching_logits      true | false          ──► nothing: labels are always kept

logger = logging.getLogger(__name__)

_OWN_KEYS = ("kd_loss_type", "intermediate_matches", "is_caching_logits")
_SCHEDULERS = (
    "temperature_scheduler",
    "kd_loss_weight_scheduler",
    "hard_label_weight_scheduler",
)
_SAME = ("temperature", "kd_loss_weight", "hard_label_weight", "probability_shift")
TEXTBREWER_KEYS = (*_SAME, *_SCHEDULERS, *_OWN_KEYS)
_WEIGHT_SCHEDULES = ("linear_decay", "linear_growth")
_TEXTBREWERS: dict[str, Any] = {"temperature": 4.0, "scale_t2": False, "hard_label_weight": 0.0}
"""Its defaults that are not ours."""
_SCHEDULER_ARGUMENTS = {"constant": (), "flsw": ("beta", "gamma"), "cwsm": ("beta",)}


def is_textbrewer(given: Any) -> bool:
    """Whether a distillation section is TextBrewer's: a JSON file, or a dict with its words.

    A dict of keys that both have means the same in either.
    """
    if not isinstance(given, Mapping):
        return isinstance(given, str | Path)
    schedulers = [given.get(key) for key in _SCHEDULERS]
    return any(key in given for key in _OWN_KEYS) or any(
        each == "none" or isinstance(each, list | tuple) for each in schedulers
    )


def from_textbrewer(given: Mapping[str, Any] | str | Path) -> dict[str, Any]:
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
        if key not in TEXTBREWER_KEYS:
            raise ConfigError(
                f"{key!r}: expected a key of TextBrewer's DistillationConfig "
                f"({', '.join(TEXTBREWER_KEYS)}), since other keys are TextBrewer's; got another"
                f"{did_you_mean(key, TEXTBREWER_KEYS)}"
            )
    result = _TEXTBREWERS | {key: values[key] for key in _SAME if key in values}
    result |= _temperature_scheduler(values.get("temperature_scheduler"))
    for weight in ("kd_loss_weight", "hard_label_weight"):
        result |= _weight_scheduler(weight, values)
    if "kd_loss_type" in values:
        result["kd_loss"] = values["kd_loss_type"]
    matches = values.get("intermediate_matches") or []
    if not isinstance(matches, list | tuple):
        raise ConfigError(f"intermediate_matches: expected a list of matches, got {matches!r}")
    return result | ({"matches": list(matches)} if matches else {})


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
    if not isinstance(name, str) or name not in _SCHEDULER_ARGUMENTS:
        raise ConfigError(
            f"temperature_scheduler: expected one of {', '.join(_SCHEDULER_ARGUMENTS)}, got "
            f"{name if isinstance(name, str) else given!r}"
        )
    known = _SCHEDULER_ARGUMENTS[name]
    options = dict(zip(known, arguments, strict=False))
    if len(arguments) == 1 and isinstance(arguments[0], Mapping):
        options = dict(arguments[0])
    elif len(arguments) != len(known):
        takes = ", ".join(known) or "no arguments"
        raise ConfigError(f"temperature_scheduler: {name} takes {takes}, got {arguments}")
    return {"temperature_scheduler": name, "temperature_scheduler_options": options}


def _weight_scheduler(weight: str, values: Mapping[str, Any]) -> dict[str, Any]:
    key = f"{weight}_scheduler"
    name = values.get(key)
    if name is None or name == "none":
        return {}
    if name not in _WEIGHT_SCHEDULES:
        raise ConfigError(f"{key}: expected one of {', '.join(_WEIGHT_SCHEDULES)}, got {name!r}")
    if values.get(weight, 1.0) != 1:
        # There the schedule's value replaces the weight after the first step.
        logger.info("%s %s is not used: TextBrewer's %s replaces it", weight, values[weight], key)
    return {weight: 1.0, key: name}


class DistillationConfig(Section):
    """The objective, by TextBrewer's names where it has them; its dicts and JSON files too."""

    temperature: float = Field(
        default=2.0, gt=0, le=1000, description="Softens both sides' logits."
    )
    temperature_scheduler: str = Field(default="constant", description="How it depends on the row.")
    temperature_scheduler_options: Options = Field(
        default_factory=dict, description="Options of the temperature scheduler."
    )
    kd_loss: str | None = Field(
        default=None,
        description="Loss on the logits: a name, or `package.module:name`; that of the task type "
        "if left out, `ce` for classes.",
    )
    kd_loss_options: Options = Field(default_factory=dict, description="Options of the loss.")
    scale_t2: bool = Field(
        default=True,
        description="Multiply the loss on the logits by T², which keeps its gradients as large as "
        "those of the labels' whatever the temperature (Hinton et al., 2015, section 2).",
    )
    kd_loss_weight: float = Field(
        default=1.0, ge=0, description="Weight of the loss on the logits."
    )
    kd_loss_weight_scheduler: str = Field(
        default="constant", description="Its factor over the steps."
    )
    kd_loss_weight_scheduler_options: Options = Field(
        default_factory=dict, description="Options of that schedule."
    )
    hard_label_weight: float | None = Field(
        default=None,
        ge=0,
        description="Weight of the loss on the labels; 0.5 where a task's rows have labels, and 0 "
        "where none has, if left out.",
    )
    hard_label_weight_scheduler: str = Field(
        default="constant", description="Its factor over the steps."
    )
    hard_label_weight_scheduler_options: Options = Field(
        default_factory=dict, description="Options of that schedule."
    )
    probability_shift: bool = Field(
        default=False, description="Swap the true class's logit with the teacher's largest one."
    )
    mixture: str = Field(
        default="mean_logits", description="How several teachers become one target."
    )
    mixture_options: dict[str, Any] = Field(
        default_factory=dict, description="What differs from the named mixture."
    )
    matches: Matches = Field(
        default=(),
        description="Losses between layers of a teacher and of the student: the name of a preset "
        "or of a family, a match, or a list of them; each may name its teacher.",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_textbrewer(cls, given: Any) -> Any:
        return from_textbrewer(given) if is_textbrewer(given) else given
