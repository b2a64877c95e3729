"""Which matches a job has, once the sizes of its models are known; every mistake names its match.

names, presets, matches ──resolve──► matches with a teacher each ──check──► TaskMatch
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

from raybrew.config import MatchPreset
from raybrew.errors import ConfigError
from raybrew.labels.payload import Signal
from raybrew.losses.features import FeatureSizes
from raybrew.losses.match_check import ModelGeometry, check_match, statistic_sizes
from raybrew.losses.match_spec import MatchSpec
from raybrew.losses.presets import PRESETS, resolve_matches
from raybrew.matching.projection_modules import VECTORS
from raybrew.matching.signals import signal_of
from raybrew.models.custom_match import CustomMatch, import_callable

__all__ = ["TaskMatch", "TeacherFacts", "geometry_of", "plan_matches"]


@dataclass(frozen=True)
class TaskMatch:
    """A match of a task, checked.

    Args:
        spec: what the job says.
        term: its name among the terms of the loss.
        teacher: whose statistic it takes.
        signal: that statistic.
        teacher_sizes: static sizes of the statistic; a custom match's follow from its values.
        student_sizes: of the student's features after projection.
    """

    spec: MatchSpec | CustomMatch
    term: str
    teacher: str
    signal: Signal
    teacher_sizes: FeatureSizes
    student_sizes: FeatureSizes

    @property
    def padding_counts(self) -> bool:
        """Whether its value depends on how far a batch is padded."""
        # A custom match's loss is the user's: it may average over padding.
        spec = self.spec
        return isinstance(spec, CustomMatch) or spec.build_loss().padding_counts


@dataclass(frozen=True)
class TeacherFacts:
    """What a match depends on, of a teacher.

    Args:
        geometry: its sizes; None if it is a column of logits, which has no layers.
        same_tokens: whether it reads the student's token ids.
    """

    geometry: ModelGeometry | None
    same_tokens: bool = True


def geometry_of(config: PreTrainedConfig) -> ModelGeometry:
    """Return the sizes of a transformers model, whose attention is loaded so that it returns maps.

    transformers counts attention maps from 0, the first layer's.
    """
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0)
    return ModelGeometry(
        num_layers=getattr(text, "num_hidden_layers", 0),
        hidden_size=getattr(text, "hidden_size", 0),
        num_heads=heads,
        returns_attention=heads > 0,
    )


def plan_matches(
    given: Sequence[Any],
    task: str,
    teachers: Mapping[str, TeacherFacts],
    all_teachers: Sequence[str],
    student: ModelGeometry,
    dtype: str,
) -> tuple[TaskMatch, ...]:
    """Spell out and check the matches of one task.

    Args:
        given: `DistillationConfig.matches`.
        task: its name, for messages.
        teachers: of the task.
        all_teachers: names of the job's; a match that names another task's is that task's.
        student: sizes of the student.
        dtype: precision of the labels.

    Raises:
        ConfigError: a match that can't be.
    """
    planned: list[TaskMatch] = []
    for entry in given:
        teacher = _teacher_of(entry, task, teachers, all_teachers)
        if teacher is None:
            continue
        facts = teachers[teacher]
        if facts.geometry is None:
            raise ConfigError(
                f"distillation.matches: {_label_of(entry)}: expected a teacher with layers, got "
                f"{teacher!r}, whose logits are a column of the data; name a teacher with a `model`"
            )
        for spec in _spelled_out(entry, facts.geometry, student):
            planned.append(_planned(spec, teacher, facts, facts.geometry, student, dtype))
    return _with_different_terms(planned)


def _teacher_of(
    entry: Any, task: str, teachers: Mapping[str, TeacherFacts], all_teachers: Sequence[str]
) -> str | None:
    named = None if isinstance(entry, str) else entry.teacher
    what = _label_of(entry)
    if named is None:
        if len(teachers) == 1:
            return next(iter(teachers))
        how = (
            f"write {{preset: {_name_of(entry)}, teacher: …}}"
            if isinstance(entry, str | MatchPreset)
            else "set its `teacher`"
        )
        raise ConfigError(
            f"distillation.matches: {what}: expected the name of a teacher, since task {task!r} "
            f"has several ({', '.join(teachers)}), got none; {how}"
        )
    if named not in all_teachers:
        raise ConfigError(
            f"distillation.matches: {what}: expected a teacher of this job "
            f"({', '.join(all_teachers)}), got {named!r}"
        )
    return named if named in teachers else None


def _label_of(entry: Any) -> str:
    return entry.label if isinstance(entry, MatchSpec | CustomMatch) else _name_of(entry)


def _name_of(entry: Any) -> str:
    return entry.preset if isinstance(entry, MatchPreset) else str(entry)


def _spelled_out(
    entry: Any, teacher: ModelGeometry, student: ModelGeometry
) -> list[MatchSpec | CustomMatch]:
    if isinstance(entry, MatchSpec | CustomMatch):
        return [entry]
    name = _name_of(entry)
    weight = entry.weight if isinstance(entry, MatchPreset) else 1.0
    named = entry.teacher if isinstance(entry, MatchPreset) else None
    every = entry.every if isinstance(entry, MatchPreset) else 1
    specs = resolve_matches(name, teacher, student, every=every)
    # TextBrewer's presets count attention maps from 1.
    shift = (teacher.first_attention - 1, student.first_attention - 1) if name in PRESETS else ()
    return [
        spec.model_copy(
            update={"weight": spec.weight * weight, "teacher": named}
            | (_shifted(spec, *shift) if shift and spec.feature == "attention" else {})
        )
        for spec in specs
    ]


def _shifted(spec: MatchSpec, by_teacher: int, by_student: int) -> dict[str, Any]:
    assert isinstance(spec.layer_T, int)
    assert isinstance(spec.layer_S, int), "presets match attention layer by layer"
    return {"layer_T": spec.layer_T + by_teacher, "layer_S": spec.layer_S + by_student}


def _planned(
    spec: MatchSpec | CustomMatch,
    teacher: str,
    facts: TeacherFacts,
    geometry: ModelGeometry,
    student: ModelGeometry,
    dtype: str,
) -> TaskMatch:
    if isinstance(spec, CustomMatch):
        import_callable(spec.loss, f"{spec.label}: loss")
        axes = spec.axes
        teacher_sizes = FeatureSizes(0, geometry.num_heads)
        student_sizes = FeatureSizes(student.hidden_size, student.num_heads)
        term = f"match/custom_{spec.module_S}_{spec.module_T}"
        term += f"_{spec.teacher}" if spec.teacher else ""
    else:
        try:
            check_match(spec, geometry, student)
        except ConfigError as error:
            raise ConfigError(f"distillation.matches: {error}") from None
        axes = spec.build_loss().axes
        teacher_sizes = statistic_sizes(spec, geometry)
        student_sizes = _student_sizes(spec, student)
        term = f"match/{spec.metric_name}"
    if "token" in axes and not facts.same_tokens:
        raise ConfigError(
            f"distillation.matches: {spec.label}: it compares token by token, but teacher "
            f"{teacher!r} reads tokens of its own (inputs: own); take a loss that ships no tokens "
            "(pkd, rkd_distance, sp, cka), or inputs: shared"
        )
    return TaskMatch(spec, term, teacher, signal_of(spec, dtype), teacher_sizes, student_sizes)


def _student_sizes(spec: MatchSpec, student: ModelGeometry) -> FeatureSizes:
    hidden = student.hidden_size if spec.proj is None else spec.proj[2]
    if spec.feature in VECTORS:
        hidden //= max(student.num_heads, 1)
    return FeatureSizes(hidden, student.num_heads, len(spec.student_layers))


def _with_different_terms(planned: Sequence[TaskMatch]) -> tuple[TaskMatch, ...]:
    seen: dict[str, int] = {}
    result = []
    for match in planned:
        seen[match.term] = seen.get(match.term, 0) + 1
        count = seen[match.term]
        result.append(match if count == 1 else replace(match, term=f"{match.term}_{count}"))
    return tuple(result)
