"""What a match is, as written in a config: TextBrewer's spelling, and a teacher's name."""

from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt

from raybrew.losses.features import Feature, MatchLoss, match_loss
from raybrew.losses.projection_kinds import projection_builder

__all__ = ["Layers", "MatchSpec", "ProjectionSpec"]

Layer: TypeAlias = Annotated[int, Field(ge=0, strict=True)]
Layers: TypeAlias = Layer | tuple[Layer, ...]


def _with_options(value: Any) -> Any:
    """TextBrewer leaves the options out when there are none."""
    return (*value, {}) if isinstance(value, list | tuple) and len(value) == 3 else value


def _known(kind: str) -> str:
    projection_builder(kind)
    return kind


ProjectionSpec: TypeAlias = Annotated[
    tuple[Annotated[str, AfterValidator(_known)], PositiveInt, PositiveInt, dict[str, Any]],
    BeforeValidator(_with_options),
]
"""Kind (linear, relu, tanh, or the user's), student's size, teacher's, optimizer's options."""


class MatchSpec(BaseModel):
    """One match between layers of a teacher and layers of the student."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer_T: Layers = Field(
        description="Teacher's layer, an index into the adaptor's list (hidden: 0 is the embedding "
        "output); two of them for fsp and mmd; any number for emd and for a loss of your own, "
        "which then gets lists."
    )
    layer_S: Layers = Field(description="Student's layer or layers, as layer_T.")
    feature: Feature = Field(
        description="hidden, attention, or the query, key or value vectors of self-attention."
    )
    loss: str = Field(
        description='Name of the match loss, or "package.module:name" for one of your own.'
    )
    weight: float = Field(default=1.0, description="Factor of this match in the total loss.")
    proj: ProjectionSpec | None = Field(
        default=None,
        description="Projection of the student's vectors: [linear | relu | tanh, dim_S, dim_T, "
        "{optimizer options}]; the options may be left out.",
    )
    teacher: str | None = Field(
        default=None,
        description="Name of the teacher whose features are matched; none where a task has one.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description='Options of the loss, such as {"pooling": "first"} for rkd_distance.',
    )

    @property
    def label(self) -> str:
        """How messages name this match."""
        whose = f"teacher {self.teacher!r}" if self.teacher else "teacher"
        return (
            f"match {self.loss!r} on {self.feature} ({whose} layer {_spelled(self.layer_T)} → "
            f"student layer {_spelled(self.layer_S)})"
        )

    @property
    def metric_name(self) -> str:
        """How metrics name this match, as in TextBrewer: feature_loss_S_T."""
        layers = "_".join("-".join(map(str, _as_tuple(x))) for x in (self.layer_S, self.layer_T))
        own = f"_{self.teacher}" if self.teacher else ""
        return f"{self.feature}_{self.loss.rpartition(':')[2]}_{layers}{own}"

    @property
    def teacher_layers(self) -> tuple[int, ...]:
        """Teacher's layers, also where there is one."""
        return _as_tuple(self.layer_T)

    @property
    def student_layers(self) -> tuple[int, ...]:
        """Student's layers, also where there is one."""
        return _as_tuple(self.layer_S)

    def build_loss(self) -> MatchLoss:
        """Build the loss this match names.

        Raises:
            ConfigError: an unknown name or option.
        """
        several = isinstance(self.layer_T, tuple)
        return match_loss(self.loss, self.options, self.feature, several_layers=several)


def _as_tuple(layers: int | tuple[int, ...]) -> tuple[int, ...]:
    return (layers,) if isinstance(layers, int) else layers


def _spelled(layers: int | tuple[int, ...]) -> str:
    return str(layers if isinstance(layers, int) else list(layers))
