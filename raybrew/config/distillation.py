"""The objective."""

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field

from raybrew.config.matches import Matches
from raybrew.config.section import Options, Section
from raybrew.textbrewer_config import converted, is_textbrewer

__all__ = ["DistillationConfig", "Objective"]


class DistillationConfig(Section):
    """The objective. Field names follow TextBrewer where it has the thing."""

    temperature: float = Field(
        default=4.0, gt=0, le=1000, description="Softens both sides' logits."
    )
    temperature_scheduler: str = Field(default="constant", description="How rows change it.")
    temperature_scheduler_options: Options = Field(
        default_factory=dict, description="Options of the temperature scheduler."
    )
    kd_loss: str | None = Field(
        default=None,
        description="Loss on the logits: a name, or `package.module:name`; that of the task's kind "
        "if left out, `ce` for classes.",
    )
    kd_loss_options: Options = Field(default_factory=dict, description="Options of the loss.")
    scale_t2: bool = Field(default=False, description="Multiply the loss on the logits by T².")
    kd_loss_weight: float = Field(
        default=1.0, ge=0, description="Weight of the loss on the logits."
    )
    kd_loss_weight_scheduler: str = Field(
        default="constant", description="Its factor over the steps."
    )
    kd_loss_weight_scheduler_options: Options = Field(
        default_factory=dict, description="Options of that schedule."
    )
    hard_label_weight: float = Field(
        default=0.0, ge=0, description="Weight of the loss on the labels."
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
        "or of a kind, a match, or a list of them; each may name its teacher.",
    )


def _of_textbrewer(given: Any) -> Any:
    return converted(given) if is_textbrewer(given) else given


if TYPE_CHECKING:
    Objective: TypeAlias = DistillationConfig
else:
    Objective = Annotated[DistillationConfig, BeforeValidator(_of_textbrewer)]
"""A `DistillationConfig`, or TextBrewer's as a dict or a JSON file."""
