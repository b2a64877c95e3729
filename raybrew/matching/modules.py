"""Whether the modules that matches name are there: looked up in a model without weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from raybrew.errors import ConfigError
from raybrew.losses.match_spec import MatchSpec
from raybrew.matching.projection_modules import VECTORS, projection_module
from raybrew.models.custom_match import CustomMatch
from raybrew.models.hooks import find_module

__all__ = ["check_modules"]


def check_modules(
    matches: Sequence[MatchSpec | CustomMatch],
    model_class: Any,
    config: PreTrainedConfig,
    side: str,
) -> None:
    """Refuse matches of modules that a model hasn't got.

    Args:
        matches: those that look at this model.
        model_class: transformers' class that it is loaded with.
        config: of the model.
        side: `teacher` or `student`.

    Raises:
        ConfigError: names the match and the nearest modules.
    """
    named = [m for m in matches if isinstance(m, CustomMatch) or m.feature in VECTORS]
    if not named:
        return
    with torch.device("meta"):
        model: nn.Module = model_class.from_config(config)
    for match in named:
        try:
            _look_up(match, model, side)
        except ConfigError as error:
            raise ConfigError(f"distillation.matches: {match.label}: {side}: {error}") from None


def _look_up(match: MatchSpec | CustomMatch, model: nn.Module, side: str) -> None:
    if isinstance(match, CustomMatch):
        find_module(model, match.module_T if side == "teacher" else match.module_S)
        return
    for layer in match.teacher_layers if side == "teacher" else match.student_layers:
        projection_module(model, match.feature, layer, f"{match.feature} of layer {layer}")
