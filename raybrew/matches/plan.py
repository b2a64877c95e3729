"""The matches of a task: spelled out, checked against both models, and as terms of the loss.

names, presets, matches ──► matches with a teacher each ──check──► TaskMatch ──► MatchTerm

teacher's features ──► payload of TaskMatch.signal ─ ─ store ─ ─► MatchTerm ◄── student's
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedConfig

from raybrew.config import MatchPreset
from raybrew.data.payload import Signal
from raybrew.errors import ConfigError, import_callable
from raybrew.labels.logits import SoftLabel, as_ragged
from raybrew.losses.match_loss import UNKNOWN_SIZE, FeatureSizes
from raybrew.matches.capture import (
    QKV_MODULES,
    FeatureReader,
    Side,
    module_outputs,
    needs_attention,
    signal_of,
    use_eager_attention,
)
from raybrew.matches.presets import (
    PRESETS,
    ModelGeometry,
    check_match,
    resolve_matches,
    statistic_sizes,
)
from raybrew.matches.spec import CustomMatch, MatchSpec
from raybrew.models.pretrained import BUILD_ERRORS, first_line, meta_model
from raybrew.tasks.task_type import Adaptor, TaskType

Entry = MatchPreset | MatchSpec | CustomMatch
_EXAMPLES, _TOKENS = 2, 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskMatch:
    """A match of a task, checked.

    Args:
        spec: as the job states it.
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
        return self.spec.build_loss().padding_counts


def geometry_of(config: PreTrainedConfig, *, same_tokens: bool = True) -> ModelGeometry:
    """Return the sizes of a transformers model, whose attention is loaded so that it returns maps.

    transformers counts attention maps from 0, the first layer's.

    Args:
        config: of the model.
        same_tokens: whether it reads the token ids that the student reads.
    """
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0)
    return ModelGeometry(
        num_layers=getattr(text, "num_hidden_layers", 0),
        hidden_size=getattr(text, "hidden_size", 0),
        num_heads=heads,
        returns_attention=heads > 0,
        same_tokens=same_tokens,
    )


def plan_matches(
    given: Sequence[Any],
    task: str,
    teachers: Mapping[str, ModelGeometry | None],
    all_teachers: Sequence[str],
    student: ModelGeometry,
    dtype: str,
) -> tuple[TaskMatch, ...]:
    """Spell out and check the matches of one task.

    Args:
        given: `DistillationConfig.matches`.
        task: its name, for messages.
        teachers: sizes of the task's; None of one that is a column of logits, without layers.
        all_teachers: names of the job's; a match that names another task's is that task's.
        student: sizes of the student.
        dtype: precision of the labels.

    Raises:
        ConfigError: a match that can't be.
    """
    planned: list[TaskMatch] = []
    for each in given:
        entry = MatchPreset(preset=each) if isinstance(each, str) else each
        teacher = _teacher_of(entry, task, teachers, all_teachers)
        if teacher is None:
            continue
        geometry = teachers[teacher]
        if geometry is None:
            raise ConfigError(
                f"distillation.matches: {_label_of(entry)}: expected a teacher with layers, got "
                f"{teacher!r}, whose logits are a column of the data; name a teacher with a `model`"
            )
        planned += [
            _planned(spec, teacher, geometry, student, dtype)
            for spec in _spelled_out(entry, geometry, student)
        ]
    return _with_different_terms(planned)


def _teacher_of(
    entry: Entry,
    task: str,
    teachers: Mapping[str, ModelGeometry | None],
    all_teachers: Sequence[str],
) -> str | None:
    named, what = entry.teacher, _label_of(entry)
    if named is None:
        if len(teachers) == 1:
            return next(iter(teachers))
        how = (
            f"write {{preset: {entry.preset}, teacher: …}}"
            if isinstance(entry, MatchPreset)
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


def _label_of(entry: Entry) -> str:
    return entry.preset if isinstance(entry, MatchPreset) else entry.label


def _spelled_out(
    entry: Entry, teacher: ModelGeometry, student: ModelGeometry
) -> Sequence[MatchSpec | CustomMatch]:
    if not isinstance(entry, MatchPreset):
        return [entry]
    specs = resolve_matches(entry.preset, teacher, student, every=entry.every)
    # TextBrewer's presets count attention maps from 1.
    from_one = entry.preset in PRESETS
    shift = (teacher.first_attention - 1, student.first_attention - 1) if from_one else ()
    return [
        spec.model_copy(
            update={"weight": spec.weight * entry.weight, "teacher": entry.teacher}
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
    geometry: ModelGeometry,
    student: ModelGeometry,
    dtype: str,
) -> TaskMatch:
    if isinstance(spec, CustomMatch):
        import_callable(spec.loss, f"{spec.label}: loss")
        teacher_sizes = FeatureSizes(UNKNOWN_SIZE, geometry.num_heads)
        student_sizes = FeatureSizes(student.hidden_size, student.num_heads)
    else:
        try:
            check_match(spec, geometry, student)
        except ConfigError as error:
            raise ConfigError(f"distillation.matches: {error}") from None
        teacher_sizes = statistic_sizes(spec, geometry)
        student_sizes = _student_sizes(spec, student)
    if "token" in spec.build_loss().axes and not geometry.same_tokens:
        raise ConfigError(
            f"distillation.matches: {spec.label}: it compares token by token, but teacher "
            f"{teacher!r} reads tokens of its own (inputs: own); take a loss that ships no tokens "
            "(pkd, rkd_distance, sp, cka), or inputs: shared"
        )
    term, signal = f"match/{spec.metric_name}", signal_of(spec, dtype)
    return TaskMatch(spec, term, teacher, signal, teacher_sizes, student_sizes)


def _student_sizes(spec: MatchSpec, student: ModelGeometry) -> FeatureSizes:
    hidden = student.hidden_size if spec.proj is None else spec.proj[2]
    if spec.feature in QKV_MODULES:
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


def check_modules(
    matches: Sequence[MatchSpec | CustomMatch],
    model_class: Any,
    config: PreTrainedConfig,
    side: Side,
) -> None:
    """Refuse matches of modules that a model doesn't have.

    Args:
        matches: those that look at this model.
        model_class: transformers' class that it is loaded with.
        config: of the model.
        side: `teacher` or `student`.

    Raises:
        ConfigError: names the match and the nearest modules.
    """
    named = [m for m in matches if isinstance(m, CustomMatch) or m.feature in QKV_MODULES]
    if not named:
        return
    model = meta_model(model_class, config, side)
    for match in named:
        try:
            module_outputs(match, model, side)
        except ConfigError as error:
            raise ConfigError(f"distillation.matches: {match.label}: {side}: {error}") from None


def check_adaptor(
    matches: Sequence[MatchSpec | CustomMatch],
    adaptor: Adaptor,
    kind: TaskType,
    config: PreTrainedConfig,
    side: Side,
    num_labels: int,
) -> None:
    """Refuse matches of what a user's adaptor doesn't give, tried on a made batch without weights.

        2 examples of 4 tokens ──► model on the meta device ──► zeros of its shapes ──► adaptor

    The adaptor sees tensors of the right shapes in memory, so it may compute with them as it does
    in training. A model that can't run without weights, or an adaptor that fails on made values,
    shows nothing either way: the first batch does.

    Args:
        matches: those that look at this model.
        adaptor: of the user.
        kind: of the task.
        config: of the model.
        side: which of the two the model is.
        num_labels: logits of a row.

    Raises:
        ConfigError: names the match, what it needs and what there is.
    """
    if not matches:
        return
    model = meta_model(kind.model_class, config, side)
    if needs_attention(matches):
        use_eager_attention(model)
    reader = FeatureReader(model, adaptor, matches, side)
    batch = _batch(kind, side, num_labels)
    try:
        outputs: Any = model.eval()(input_ids=batch["input_ids"].to("meta"), **reader.flags)
        reader.read(batch, tree_map_only(Tensor, _in_memory, outputs))
    except ConfigError as error:
        raise ConfigError(f"distillation.matches: {error}") from None
    except BUILD_ERRORS as error:
        _log.info(
            "the %s's adaptor can't be tried on a made batch (%s): its first batch will show what "
            "it gives",
            side,
            first_line(error),
        )


def _in_memory(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _batch(kind: TaskType, side: Side, num_labels: int) -> Mapping[str, Tensor]:
    shape = (_EXAMPLES, _TOKENS)
    mask = torch.ones(shape, dtype=torch.int64)
    mask[-1, -1] = 0  # padded, as batches are
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.int64),
        "attention_mask": mask,
        "token_type_ids": torch.zeros(shape, dtype=torch.int64),
    }
    if side == "student":  # teachers don't get the labels
        batch["labels"] = _labels(kind, num_labels)
    return batch


def _labels(kind: TaskType, num_labels: int) -> Tensor:
    if kind.layout == "token":
        return torch.zeros(_EXAMPLES, _TOKENS, dtype=torch.int64)
    if kind.layout == "position":
        return torch.zeros(_EXAMPLES, 2, dtype=torch.int64)
    if kind.exclusive:
        return torch.zeros(_EXAMPLES, dtype=torch.int64)
    return torch.zeros(_EXAMPLES, num_labels)


class MatchTerm:
    """Numerators and denominators of one match."""

    def __init__(self, match: TaskMatch):
        self.match, self._loss = match, match.spec.build_loss()

    def denominator(self, parts: Sequence[np.ndarray]) -> float:
        """Return what the numerators of a global batch are divided by.

        Args:
            parts: real tokens of the examples of each forward pass, over all ranks. Losses that
                compare examples see those of one pass alone.
        """
        whole = parts if self._loss.batch_level else [np.concatenate(list(parts))]
        sizes = self.match.student_sizes
        return sum(
            float(self._loss.denominator(torch.from_numpy(lengths), sizes).sum())
            for lengths in whole
        )

    def numerator(
        self, features: Sequence[Tensor], mask: Tensor | None, label: SoftLabel | None
    ) -> Tensor:
        """Return the sum over these rows, a scalar with a graph.

        Args:
            features: the student's, projected, one a layer.
            mask: (b, L), real tokens.
            label: the teacher's statistic; None only without rows.
        """
        if not len(features[0]) or label is None:
            return torch.stack([feature[:0].float().sum() for feature in features]).sum()
        length = features[0].shape[-2] if features[0].dim() > 2 else 1
        sizes = self.match.teacher_sizes
        statistic = self._loss.unpack(as_ragged(label), mask, sizes, length)
        return self._loss.loss(features, mask, statistic).numerator.sum()
