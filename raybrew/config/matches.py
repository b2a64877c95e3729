"""Matches as a job gives them: names stay names until the sizes of the models are known.

"L3_hidden_mse"                                       a preset, or a kind that is generated
{preset: hidden_mse, teacher: a, weight: 0.5}         the same, of a teacher
{preset: hidden_mse, every: 2}                        at every second layer of the student
{layer_T: 4, layer_S: 1, feature: hidden, loss: …}    a match between layers
{module_T: …, module_S: …, loss: pkg.mod:name}        a match between any two modules
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, ValidationError

from raybrew.config.section import Section, import_path_of

__all__ = ["MatchPreset", "Matches"]


class MatchPreset(Section):
    """All matches of a preset or of a kind, with one teacher."""

    preset: str = Field(description="Name of a preset, such as L3_hidden_mse, or of a kind.")
    teacher: str | None = Field(
        default=None, description="Name of the teacher; none where a task has one."
    )
    weight: float = Field(default=1.0, description="Factor on the weight of each match.")
    every: int = Field(
        default=1,
        ge=1,
        description="Only each so-manieth layer of the student is matched, for kinds that are "
        "generated.",
    )


def _as_matches(value: Any) -> tuple[Any, ...]:
    several = isinstance(value, Sequence) and not isinstance(value, str)
    entries = list(value) if several else [] if value is None else [value]
    return tuple(_as_match(entry, position) for position, entry in enumerate(entries))


def _as_match(entry: Any, position: int) -> Any:
    if isinstance(entry, str | MatchPreset):
        return entry
    # The classes bring torch along, which a job without matches has no need of.
    from raybrew.losses.match_spec import MatchSpec
    from raybrew.models.custom_match import CustomMatch

    if isinstance(entry, MatchSpec | CustomMatch):
        return entry
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"match {position}: expected a name, a mapping, a MatchSpec or a CustomMatch, got "
            f"{type(entry).__name__}"
        )
    if "preset" in entry:
        kind: type[BaseModel] = MatchPreset
    else:
        kind = CustomMatch if {"module_T", "module_S"} & entry.keys() else MatchSpec
    try:
        return kind.model_validate(dict(entry))
    except ValidationError as error:
        mistakes = "; ".join(
            f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg']}, got {mistake['input']!r}"
            for mistake in error.errors()
        )
        raise ValueError(
            f"match {position}: {mistakes}; its keys are {', '.join(kind.model_fields)}"
        ) from None


def _to_plain(matches: tuple[Any, ...]) -> list[Any]:
    return [_match_to_plain(match) for match in matches]


def _match_to_plain(match: Any) -> Any:
    if isinstance(match, str):
        return match
    given = {
        name: getattr(match, name)
        for name, field in type(match).model_fields.items()
        if getattr(match, name) != field.get_default(call_default_factory=True)
    }
    return {name: _value_to_plain(value) for name, value in given.items()}


def _value_to_plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_value_to_plain(each) for each in value]
    return import_path_of(value) if callable(value) else value


if TYPE_CHECKING:
    # A script may give a name, a mapping, or a list of them.
    Matches: TypeAlias = Any
else:
    Matches = Annotated[tuple[Any, ...], BeforeValidator(_as_matches), PlainSerializer(_to_plain)]
"""What `resolve_matches` and the geometry of the models turn into matches."""
