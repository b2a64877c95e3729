"""Whether a match can be had from two models, known before the first batch."""

from dataclasses import dataclass

from raybrew.errors import ConfigError
from raybrew.losses.features import BUILT_IN, Feature, FeatureSizes, MatchLoss
from raybrew.losses.match_spec import MatchSpec

__all__ = ["ModelGeometry", "check_match", "match_problems", "statistic_sizes"]


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
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    returns_attention: bool = True
    first_attention: int = 0

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
    problems = match_problems(spec, teacher, student)
    if problems:
        raise ConfigError(f"{spec.label}: {' '.join(problems)}")


def match_problems(spec: MatchSpec, teacher: ModelGeometry, student: ModelGeometry) -> list[str]:
    """Everything that is wrong with a match, each as a sentence or two; empty where nothing is."""
    try:
        loss = spec.build_loss()
    except ConfigError as error:
        return [str(error)]
    problems = _wrong_feature(spec, loss)
    if not problems:
        problems += _wrong_layers(spec, loss, teacher, student)
        problems += _no_attention(spec, teacher, student)
        problems += _wrong_heads(loss, teacher, student)
        problems += _wrong_sizes(spec, loss, teacher, student)
        problems += _moves_with_padding(spec, loss)
    return problems


def statistic_sizes(spec: MatchSpec, teacher: ModelGeometry) -> FeatureSizes:
    """Sizes of the statistic that this match asks of the teacher."""
    layers = spec.teacher_layers
    # A loss on two layers ships a layer once where both are the same.
    num_layers = len(set(layers)) if spec.build_loss().num_layers == 2 else len(layers)
    return FeatureSizes(teacher.hidden_size, teacher.num_heads, num_layers)


def _moves_with_padding(spec: MatchSpec, loss: MatchLoss) -> list[str]:
    # What a function of the user's does with padding is not known here.
    if spec.loss not in BUILT_IN or not loss.padding_counts:
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
    kind, student_size, teacher_size, _ = spec.proj
    if student_size == sizes[0] and (teacher_size == sizes[1] or not loss.needs_same_size):
        return []
    return [
        f"The projection takes {student_size} to {teacher_size}, but the student's hidden size is "
        f'{sizes[0]} and the teacher\'s {sizes[1]}: write "proj": '
        f'["{kind}", {sizes[0]}, {sizes[1]}].'
    ]
