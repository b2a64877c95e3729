"""Low-rank adapters of a student."""

from pydantic import Field

from raybrew.config.section import Many, Section

__all__ = ["Lora"]


class Lora(Section):
    """Adapters that learn in place of the trunk's weights, by the library peft."""

    rank: int = Field(default=8, ge=1, le=65536, description="Width of an adapter, in numbers.")
    alpha: float = Field(
        default=16.0, gt=0, description="What adapters add is multiplied by alpha / rank."
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Share of an adapter's inputs left out in training."
    )
    target_modules: Many[str] | None = Field(
        default=None,
        min_length=1,
        description="Linear layers of the trunk that get one: their names, or how these end, e.g. "
        "query; all of its linear layers if left out.",
    )
