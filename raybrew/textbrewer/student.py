"""The student of a script: its model, adaptor and projections, and what they say of a batch."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raybrew.matches.spec import MatchSpec, projection_builder
from raybrew.tasks.adaptors import View
from raybrew.textbrewer.batch import Sides, call
from raybrew.textbrewer.content import padding_mask
from raybrew.textbrewer.reading import Adaptor, features_of, read
from raybrew.textbrewer.teacher import Question


@dataclass(frozen=True, eq=False)
class Said:
    """What a student says of a batch.

    Args:
        view: by its adaptor.
        features: of each match, one tensor a layer, projected.
        size: examples.
    """

    view: View
    features: tuple[Sequence[Tensor], ...]
    size: int


def build_projections(matches: Sequence[MatchSpec], device: torch.device) -> list[nn.Module | None]:
    """Make the projections of the matches that have one, from the global generator."""
    return [
        None
        if spec.proj is None
        else projection_builder(spec.proj[0])(spec.proj[1], spec.proj[2]).to(device)
        for spec in matches
    ]


def projection_groups(
    matches: Sequence[MatchSpec], projections: Sequence[nn.Module | None]
) -> list[dict[str, Any]]:
    """Return an optimizer group for each projection, with the options of its match."""
    return [
        {"params": list(projection.parameters()), **spec.proj[3]}
        for spec, projection in zip(matches, projections, strict=True)
        if projection is not None and spec.proj is not None
    ]


def say(
    model: nn.Module,
    adaptor: Adaptor,
    batch: Any,
    arguments: Mapping[str, Any],
    autocast: Callable[[], AbstractContextManager[Any]],
    matches: Sequence[MatchSpec] = (),
    projections: Sequence[nn.Module | None] = (),
) -> Said:
    """Run a student.

    Args:
        model: on the device of the batch.
        adaptor: what its outputs mean.
        batch: what it reads.
        arguments: of the forward pass.
        autocast: its precision.
        matches: whose features to read.
        projections: one a match.

    Raises:
        ConfigError: a layer that its adaptor doesn't give; names the match.
    """
    with autocast():
        outputs = call(model, batch, arguments)
        view = read(adaptor, batch, outputs)
        features = tuple(
            _projected(features_of(view, spec, "student"), projection)
            for spec, projection in zip(matches, projections, strict=True)
        )
    return Said(view, features, _size_of(view))


def question_of(sides: Sides, said: Said, matches: Sequence[MatchSpec]) -> Question:
    """Return what a teacher is asked beside what the student said.

    Args:
        sides: of the batch.
        said: of the student.
        matches: of the teacher.
    """
    real = _real_tokens(sides.teacher, said, matches) if sides.shared else None
    return Question(sides.teacher, said.size, said.view, sides.cache, real)


def _real_tokens(batch: Any, said: Said, matches: Sequence[MatchSpec]) -> Tensor | None:
    """Return the mask of a batch's real tokens, if what is learnt looks at no others."""
    mask, view = padding_mask(batch, said.size), said.view
    if mask is None:
        return None
    flat = [logits for logits in view.logits if logits.dim() == 2]
    # As many classes as tokens: scores of tokens, as question answering has them.
    if any(logits.shape[1] == mask.shape[1] for logits in flat):
        return None
    if any(spec.build_loss().padding_counts for spec in matches):
        return None
    masks = zip(view.logits, view.logits_mask, strict=True)
    looked_at = [each for logits, each in masks if logits.dim() > 2]
    looked_at += [view.inputs_mask] * bool(matches)
    return mask if all(_is_within(each, mask) for each in looked_at) else None


def _is_within(looked_at: Tensor | None, real: Tensor) -> bool:
    if looked_at is None or looked_at.shape != real.shape:
        return False
    return not bool((looked_at[real.to(looked_at.device) == 0] != 0).any())


def _projected(features: Sequence[Tensor], projection: nn.Module | None) -> Sequence[Tensor]:
    if projection is None:
        return features
    # A layer that is matched with itself is projected once.
    done = {id(each): projection(each) for each in features}
    return [done[id(each)] for each in features]


def _size_of(view: View) -> int:
    for each in (*view.logits, *view.hidden, *view.attention, *view.labels):
        return len(each)
    return 0
