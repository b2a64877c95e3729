"""Named sets of matches: generated for any pair of models; TextBrewer's names are some of them.

generate_matches("hidden_mse", 12, 3, 384, 768)  ==  PRESETS["L3n_hidden_mse"]
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from raybrew.errors import ConfigError
from raybrew.losses.features import Feature
from raybrew.losses.match_check import ModelGeometry
from raybrew.losses.match_spec import MatchSpec, ProjectionSpec

__all__ = ["MATCH_KINDS", "PRESETS", "MatchKind", "generate_matches", "resolve_matches"]


@dataclass(frozen=True)
class MatchKind:
    """What the matches of a preset have in common.

    Attributes:
        loss: name of the match loss.
        feature: what it compares.
        twice: whether each match takes its layer twice, a layer with itself.
        projects: whether hidden sizes that differ ask for a projection.
        together: whether one match takes all layers of either side, beside the embeddings'.
        options: of the loss.
    """

    loss: str
    feature: Feature
    twice: bool = False
    projects: bool = False
    together: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


MATCH_KINDS: dict[str, MatchKind] = {
    "hidden_mse": MatchKind("hidden_mse", "hidden", projects=True),
    # TextBrewer's recipes are weighted for it: their adaptors give no mask.
    "hidden_smmd": MatchKind("mmd", "hidden", twice=True, options={"divisor": "hidden"}),
    "hidden_sgram": MatchKind("gram", "hidden", twice=True, projects=True),
    "hidden_cos": MatchKind("cos", "hidden", projects=True),
    "hidden_pkd": MatchKind("pkd", "hidden", projects=True),
    "hidden_emd": MatchKind("emd", "hidden", projects=True, together=True),
    "attention_mse": MatchKind("attention_mse", "attention"),
    "attention_mse_sum": MatchKind("attention_mse_sum", "attention"),
    "attention_ce": MatchKind("attention_ce", "attention"),
    "attention_ce_mean": MatchKind("attention_ce_mean", "attention"),
}


def generate_matches(
    kind: str,
    num_teacher_layers: int,
    num_student_layers: int,
    student_size: int = 0,
    teacher_size: int = 0,
    *,
    every: int = 1,
    first_attention: int = 1,
    teacher: str | None = None,
    weight: float = 1.0,
    projection: str = "linear",
    projection_options: Mapping[str, Any] | None = None,
) -> list[MatchSpec]:
    """Match the student's layers with teacher layers spread evenly over its depth.

    Student layer s meets teacher layer round(s · N_T / N_S), halves up. Hidden states start at the
    embedding output, 0; attention maps at the first layer. `hidden_emd` leaves to the loss which
    layers meet: it matches the embeddings by hidden_mse, and all layers after them at once.

    Args:
        kind: a key of MATCH_KINDS.
        num_teacher_layers: N_T.
        num_student_layers: N_S.
        student_size: hidden size of the student; 0 where no projection is wanted.
        teacher_size: hidden size of the teacher; where it differs, a projection is added to
            the kinds that need one.
        every: keep each so-manieth layer of the student.
        first_attention: index of the first layer's attention maps in the adaptor's lists.
        teacher: the teacher's name.
        weight: weight of each match.
        projection: kind of the projection.
        projection_options: options of its optimizer group.

    Returns:
        One match per student layer taken; of `hidden_emd` two.

    Raises:
        ConfigError: an unknown kind, or depths that aren't positive.
    """
    if kind not in MATCH_KINDS:
        raise ConfigError(_unknown(kind, "kind of match", MATCH_KINDS))
    if min(num_teacher_layers, num_student_layers, every) < 1:
        raise ConfigError(
            f"{kind}: numbers of layers and `every` have to be 1 or more; got "
            f"{num_teacher_layers} teacher layers, {num_student_layers} student layers, {every}."
        )
    chosen = MATCH_KINDS[kind]
    proj: ProjectionSpec | None = None
    if chosen.projects and student_size != teacher_size:
        proj = (projection, student_size, teacher_size, dict(projection_options or {}))
    if chosen.together:
        of_teacher = tuple(range(1, num_teacher_layers + 1))
        of_student = tuple(range(every, num_student_layers + 1, every))
        return _together(chosen, of_teacher, of_student, weight, proj, teacher)
    is_hidden = chosen.feature == "hidden"
    matches = []
    for layer_S in range(0 if is_hidden else every, num_student_layers + 1, every):
        doubled = 2 * layer_S * num_teacher_layers + num_student_layers
        layer_T = doubled // (2 * num_student_layers)
        shift = 0 if is_hidden else first_attention - 1
        layers = (layer_T + shift, layer_S + shift)
        matches.append(
            MatchSpec(
                layer_T=(layers[0],) * 2 if chosen.twice else layers[0],
                layer_S=(layers[1],) * 2 if chosen.twice else layers[1],
                feature=chosen.feature,
                loss=chosen.loss,
                weight=weight,
                proj=proj,
                teacher=teacher,
                options=dict(chosen.options),
            )
        )
    return matches


def _together(
    kind: MatchKind,
    teacher_layers: tuple[int, ...],
    student_layers: tuple[int, ...],
    weight: float,
    proj: ProjectionSpec | None,
    teacher: str | None,
) -> list[MatchSpec]:
    embeddings = MatchSpec(
        layer_T=0,
        layer_S=0,
        feature=kind.feature,
        loss="hidden_mse",
        weight=weight,
        proj=proj,
        teacher=teacher,
    )
    layers = {"layer_T": teacher_layers, "layer_S": student_layers, "loss": kind.loss}
    return [embeddings, embeddings.model_copy(update=layers)]


def _twelve(kind: str, num_student_layers: int, student_size: int = 768, every: int = 1):
    return tuple(generate_matches(kind, 12, num_student_layers, student_size, 768, every=every))


PRESETS: dict[str, tuple[MatchSpec, ...]] = {
    "L3_attention_mse": _twelve("attention_mse", 3),
    "L3_attention_mse_sum": _twelve("attention_mse_sum", 3),
    "L3_attention_ce": _twelve("attention_ce", 3),
    "L3_attention_ce_mean": _twelve("attention_ce_mean", 3),
    "L4_attention_mse": _twelve("attention_mse", 4),
    "L4_attention_mse_sum": _twelve("attention_mse_sum", 4),
    "L4_attention_ce": _twelve("attention_ce", 4),
    "L4_attention_ce_mean": _twelve("attention_ce_mean", 4),
    "L3_hidden_mse": _twelve("hidden_mse", 3),
    "L3n_hidden_mse": _twelve("hidden_mse", 3, 384),
    "L3_hidden_smmd": _twelve("hidden_smmd", 3),
    "L4t_hidden_mse": _twelve("hidden_mse", 4, 312),
    "L4_hidden_smmd": _twelve("hidden_smmd", 4),
    "L4t_hidden_sgram": _twelve("hidden_sgram", 4, 312),
    "L6_hidden_mse": _twelve("hidden_mse", 6),
    "L6_hidden_smmd": _twelve("hidden_smmd", 6),
    "small_hidden_mse": _twelve("hidden_mse", 12, 256, every=2),
    "small_hidden_smmd": _twelve("hidden_smmd", 12, every=2),
}
"""TextBrewer's names, for a teacher of 12 layers × 768; attention is counted from 1."""


def resolve_matches(
    given: str | MatchSpec | Mapping[str, Any] | Sequence[str | MatchSpec | Mapping[str, Any]],
    teacher: ModelGeometry | None = None,
    student: ModelGeometry | None = None,
    *,
    every: int = 1,
) -> list[MatchSpec]:
    """Spell out what a config says about matches.

    Args:
        given: a name or a match, or a list of them. A name is one of PRESETS, or of MATCH_KINDS,
            which are generated for the two models.
        teacher: sizes of the teacher, for names of MATCH_KINDS.
        student: sizes of the student, for names of MATCH_KINDS.
        every: keep each so-manieth layer of the student, for names of MATCH_KINDS.

    Returns:
        Matches, in the order given.

    Raises:
        ConfigError: an unknown name (with the nearest ones), or a match with a mistake in it.
    """
    entries = [given] if isinstance(given, str | MatchSpec | Mapping) else list(given)
    matches: list[MatchSpec] = []
    for position, entry in enumerate(entries):
        if isinstance(entry, MatchSpec):
            matches.append(entry)
        elif isinstance(entry, str):
            matches.extend(_named(entry, teacher, student, every))
        else:
            matches.append(_parsed(entry, position))
    return matches


def _named(
    name: str, teacher: ModelGeometry | None, student: ModelGeometry | None, every: int
) -> Sequence[MatchSpec]:
    if name in PRESETS:
        if every != 1:
            raise ConfigError(
                f"The preset {name!r} says which layers it matches: expected it without `every`, "
                f"got {every}; the kinds that are generated take it: {', '.join(MATCH_KINDS)}."
            )
        return PRESETS[name]
    if name not in MATCH_KINDS:
        raise ConfigError(_unknown(name, "match preset", {**PRESETS, **MATCH_KINDS}))
    if teacher is None or student is None:
        raise ConfigError(
            f"The matches {name!r} are generated from the sizes of teacher and student, which "
            f"aren't known here; name a preset of fixed size instead: {', '.join(PRESETS)}."
        )
    return generate_matches(
        name,
        teacher.num_layers,
        student.num_layers,
        student.hidden_size,
        teacher.hidden_size,
        every=every,
        first_attention=teacher.first_attention,
    )


def _parsed(entry: Mapping[str, Any], position: int) -> MatchSpec:
    try:
        return MatchSpec.model_validate(dict(entry))
    except ValidationError as error:
        mistakes = "; ".join(
            f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg']}, got {mistake['input']!r}"
            for mistake in error.errors()
        )
        raise ConfigError(
            f"Match {position} of the list, {dict(entry)}, has mistakes: {mistakes}. "
            f"Its keys are {', '.join(MatchSpec.model_fields)}."
        ) from error


def _unknown(name: str, what: str, known: Mapping[str, Any]) -> str:
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
    return f"There is no {what} {name!r}.{hint} The names are {', '.join(known)}."
