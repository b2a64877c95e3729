"""Named sets of matches, and whether two models can give a match, known before the first batch.

A preset of a fixed name is TextBrewer's; a family is generated for any pair of models:
generate_matches("hidden_mse", teacher, student) with 12 and 3 layers of 768 and 384 is
PRESETS["L3n_hidden_mse"].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import ValidationError

from raybrew.errors import ConfigError, unknown_name
from raybrew.losses.match_loss import Feature, FeatureSizes, MatchLoss
from raybrew.matches.match_losses import BUILT_IN_MATCH_LOSSES
from raybrew.matches.spec import MatchSpec, ProjectionSpec


@dataclass(frozen=True)
class ModelGeometry:
    """The sizes of a model that matches depend on.

    Attributes:
        num_layers: transformer layers.
        hidden_size: entries of a hidden state.
        num_heads: attention heads.
        returns_attention: whether its attention kernel gives attention maps.
        first_attention: index of the first layer in the adaptor's list of attentions: 0 as
            transformers gives it; 1 where the list is counted like hidden states, as the presets
            `L3_attention_*` and `L4_attention_*` do.
        same_tokens: whether it reads the token ids that the student reads.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    returns_attention: bool = True
    first_attention: int = 0
    same_tokens: bool = True

    def layers(self, feature: Feature) -> range:
        """Indices that the adaptor's list of this feature has."""
        if feature == "hidden":
            return range(self.num_layers + 1)
        return range(self.first_attention, self.first_attention + self.num_layers)


def check_match(spec: MatchSpec, teacher: ModelGeometry, student: ModelGeometry) -> None:
    """Refuse a match that these models can't give.

    Raises:
        ConfigError: names the match and everything that is wrong with it.
    """
    try:
        loss = spec.build_loss()
    except ConfigError as error:
        raise ConfigError(f"{spec.label}: {error}") from error
    problems = _wrong_feature(spec, loss)
    if not problems:
        problems += _wrong_layers(spec, loss, teacher, student)
        problems += _no_attention(spec, teacher, student)
        problems += _wrong_heads(loss, teacher, student)
        problems += _wrong_sizes(spec, loss, teacher, student)
        problems += _depends_on_padding(spec, loss)
    if problems:
        raise ConfigError(f"{spec.label}: {' '.join(problems)}")


def statistic_sizes(spec: MatchSpec, teacher: ModelGeometry) -> FeatureSizes:
    """Sizes of the statistic that this match asks of the teacher."""
    layers = spec.teacher_layers
    # A loss on two layers ships a layer once where both are the same.
    num_layers = len(set(layers)) if spec.build_loss().num_layers == 2 else len(layers)
    return FeatureSizes(teacher.hidden_size, teacher.num_heads, num_layers)


def _depends_on_padding(spec: MatchSpec, loss: MatchLoss) -> list[str]:
    # What a user's function does with padding isn't known here.
    if spec.loss not in BUILT_IN_MATCH_LOSSES or not loss.padding_counts:
        return []
    return [
        f"Its value moves with the padding of the batch with {dict(spec.options)}, which is "
        "TextBrewer's form and there for raybrew.textbrewer alone: leave the option out."
    ]


def _wrong_feature(spec: MatchSpec, loss: MatchLoss) -> list[str]:
    if spec.feature in loss.features:
        return []
    return [f"The loss compares {' or '.join(loss.features)}, not {spec.feature}."]


def _wrong_layers(
    spec: MatchSpec, loss: MatchLoss, teacher: ModelGeometry, student: ModelGeometry
) -> list[str]:
    problems = []
    for key, given, layers, side, geometry in (
        ("layer_T", spec.layer_T, spec.teacher_layers, "teacher", teacher),
        ("layer_S", spec.layer_S, spec.student_layers, "student", student),
    ):
        wants_list = loss.num_layers != 1
        is_list = isinstance(given, tuple)
        if is_list != wants_list or (loss.num_layers == 2 and len(layers) != 2) or not layers:
            wanted = {1: "one layer, a number", 2: "a list of two layers"}.get(
                loss.num_layers or 0, "a list of layers"
            )
            got = list(layers) if is_list else given
            problems.append(f"{key} has to be {wanted}; got {got}.")
        existing = geometry.layers(spec.feature)
        absent = [layer for layer in layers if layer not in existing]
        if absent:
            problems.append(
                f"The {side} has no {spec.feature} of layer {', '.join(map(str, absent))}: it has "
                f"{existing.start} to {existing.stop - 1}."
            )
    return problems


def _no_attention(spec: MatchSpec, teacher: ModelGeometry, student: ModelGeometry) -> list[str]:
    if spec.feature != "attention":
        return []
    return [
        f"The {side}'s attention kernel returns no attention maps: load it with "
        'attn_implementation="eager".'
        for side, geometry in (("teacher", teacher), ("student", student))
        if not geometry.returns_attention
    ]


def _wrong_heads(loss: MatchLoss, teacher: ModelGeometry, student: ModelGeometry) -> list[str]:
    if loss.relation_heads is not None:
        return [
            f"The {side}'s hidden size {geometry.hidden_size} can't be cut into "
            f"{loss.relation_heads} relation heads: set num_relation_heads to a divisor of both "
            f"sizes, {teacher.hidden_size} and {student.hidden_size}."
            for side, geometry in (("teacher", teacher), ("student", student))
            if geometry.hidden_size % loss.relation_heads
        ]
    if not loss.needs_same_heads or teacher.num_heads == student.num_heads:
        return []
    instead = {
        "attention_mse": "attention_mse_sum",
        "attention_ce": "attention_ce_mean",
        "minilm_attention": "attention_ce_mean",
        "minilm_value_relation": "minilmv2_relation",
    }.get(loss.name, "a loss that joins the heads")
    return [
        f"The teacher has {teacher.num_heads} heads and the student {student.num_heads}, and the "
        f"loss compares them one by one: use {instead}."
    ]


def _wrong_sizes(
    spec: MatchSpec, loss: MatchLoss, teacher: ModelGeometry, student: ModelGeometry
) -> list[str]:
    sizes = (student.hidden_size, teacher.hidden_size)
    if spec.proj is None:
        if not loss.needs_same_size or sizes[0] == sizes[1]:
            return []
        return [
            f"The student's hidden size is {sizes[0]} and the teacher's {sizes[1]}: add "
            f'"proj": ["linear", {sizes[0]}, {sizes[1]}].'
        ]
    if spec.feature != "hidden":
        return [f"A projection acts on hidden states, not on {spec.feature}: leave proj out."]
    name, student_size, teacher_size, _ = spec.proj
    if student_size == sizes[0] and (teacher_size == sizes[1] or not loss.needs_same_size):
        return []
    return [
        f"The projection takes {student_size} to {teacher_size}, but the student's hidden size is "
        f'{sizes[0]} and the teacher\'s {sizes[1]}: write "proj": '
        f'["{name}", {sizes[0]}, {sizes[1]}].'
    ]


class MatchFamily(NamedTuple):
    """What the matches of a generated preset have in common.

    Attributes:
        loss: name of the match loss.
        feature: what it compares.
        twice: whether each match takes its layer twice, a layer with itself.
        projects: whether hidden sizes that differ ask for a projection.
        together: whether one match takes all layers of either side, besides the embeddings'.
        options: of the loss.
    """

    loss: str
    feature: Feature
    twice: bool = False
    projects: bool = False
    together: bool = False
    options: Mapping[str, Any] = MappingProxyType({})


MATCH_FAMILIES: dict[str, MatchFamily] = {
    "hidden_mse": MatchFamily("hidden_mse", "hidden", projects=True),
    # TextBrewer's recipes are weighted for it: their adaptors give no mask.
    "hidden_smmd": MatchFamily("mmd", "hidden", twice=True, options={"divisor": "hidden"}),
    "hidden_sgram": MatchFamily("gram", "hidden", twice=True, projects=True),
    "hidden_cos": MatchFamily("cos", "hidden", projects=True),
    "hidden_pkd": MatchFamily("pkd", "hidden", projects=True),
    "hidden_emd": MatchFamily("emd", "hidden", projects=True, together=True),
    "attention_mse": MatchFamily("attention_mse", "attention"),
    "attention_mse_sum": MatchFamily("attention_mse_sum", "attention"),
    "attention_ce": MatchFamily("attention_ce", "attention"),
    "attention_ce_mean": MatchFamily("attention_ce_mean", "attention"),
}


def generate_matches(
    name: str, teacher: ModelGeometry, student: ModelGeometry, *, every: int = 1
) -> list[MatchSpec]:
    """Match the student's layers with teacher layers spread evenly over its depth.

    Student layer s meets teacher layer round(s · N_T / N_S), halves up. Hidden states start at the
    embedding output, 0; attention maps at the first layer. `hidden_emd` leaves to the loss which
    layers meet: it matches the embeddings by hidden_mse, and all layers after them at once. Where
    hidden sizes differ, the families that need one get a linear projection.

    Args:
        name: a key of MATCH_FAMILIES.
        teacher: its sizes; N_T is its depth.
        student: its sizes; N_S is its depth.
        every: keep each so-manieth layer of the student.

    Returns:
        One match per student layer taken; of `hidden_emd` two.

    Raises:
        ConfigError: an unknown name, or depths that aren't positive.
    """
    if name not in MATCH_FAMILIES:
        raise unknown_name("family of matches", name, MATCH_FAMILIES)
    if min(teacher.num_layers, student.num_layers, every) < 1:
        raise ConfigError(
            f"{name}: numbers of layers and `every` have to be 1 or more; got "
            f"{teacher.num_layers} teacher layers, {student.num_layers} student layers, {every}."
        )
    family = MATCH_FAMILIES[name]
    proj: ProjectionSpec | None = None
    if family.projects and student.hidden_size != teacher.hidden_size:
        proj = ("linear", student.hidden_size, teacher.hidden_size, {})
    if family.together:
        of_teacher = tuple(range(1, teacher.num_layers + 1))
        of_student = tuple(range(every, student.num_layers + 1, every))
        embeddings = MatchSpec(
            layer_T=0, layer_S=0, feature=family.feature, loss="hidden_mse", proj=proj
        )
        layers = {"layer_T": of_teacher, "layer_S": of_student, "loss": family.loss}
        return [embeddings, embeddings.model_copy(update=layers)]
    is_hidden = family.feature == "hidden"
    matches = []
    for number in range(0 if is_hidden else every, student.num_layers + 1, every):
        doubled = 2 * number * teacher.num_layers + student.num_layers
        layer_T, layer_S = doubled // (2 * student.num_layers), number
        if not is_hidden:
            layer_T += teacher.first_attention - 1
            layer_S += student.first_attention - 1
        matches.append(
            MatchSpec(
                layer_T=(layer_T,) * 2 if family.twice else layer_T,
                layer_S=(layer_S,) * 2 if family.twice else layer_S,
                feature=family.feature,
                loss=family.loss,
                proj=proj,
                options=dict(family.options),
            )
        )
    return matches


def _twelve(
    family: str, num_layers: int, hidden_size: int = 768, every: int = 1
) -> tuple[MatchSpec, ...]:
    teacher = ModelGeometry(12, 768, 12, first_attention=1)
    student = ModelGeometry(num_layers, hidden_size, 12, first_attention=1)
    return tuple(generate_matches(family, teacher, student, every=every))


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
    """Spell out the matches of a config.

    Args:
        given: a name or a match, or a list of them. A name is one of PRESETS, or of MATCH_FAMILIES,
            which are generated for the two models.
        teacher: sizes of the teacher, for names of MATCH_FAMILIES.
        student: sizes of the student, for names of MATCH_FAMILIES.
        every: keep each so-manieth layer of the student, for names of MATCH_FAMILIES.

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
                f"The preset {name!r} has fixed layers: expected it without `every`, "
                f"got {every}; the families that are generated take it: "
                f"{', '.join(MATCH_FAMILIES)}."
            )
        return PRESETS[name]
    if name not in MATCH_FAMILIES:
        raise unknown_name("match preset", name, [*PRESETS, *MATCH_FAMILIES])
    if teacher is None or student is None:
        raise ConfigError(
            f"The matches {name!r} are generated from the sizes of teacher and student, which "
            f"aren't known here; name a preset of fixed size instead: {', '.join(PRESETS)}."
        )
    return generate_matches(name, teacher, student, every=every)


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
