"""A match's share of the loss: the student's features against the teacher's shipped statistic."""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from raybrew.labels.tensors import SoftLabel, as_ragged
from raybrew.losses.features.ragged import FeatureSizes, Ragged, row_shape, unpack
from raybrew.losses.match_spec import MatchSpec
from raybrew.matching.plan import TaskMatch
from raybrew.models.custom_match import CustomMatch

__all__ = ["MatchTerm"]


class MatchTerm:
    """Numerators and denominators of one match."""

    def __init__(self, match: TaskMatch):
        self.match = match
        self._loss = match.spec.build_loss() if isinstance(match.spec, MatchSpec) else None

    @property
    def is_over_examples(self) -> bool:
        """Whether a forward pass's value counts as often as it has examples."""
        return self._loss is None

    def denominator(self, parts: Sequence[np.ndarray]) -> float:
        """Return what the numerators of a global batch are divided by.

        Args:
            parts: real tokens of the examples of each forward pass, over all ranks. Losses that
                compare examples see those of one pass alone.
        """
        if self._loss is None:
            return float(sum((lengths > 0).sum() for lengths in parts))
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
        ragged = as_ragged(label)
        if self._loss is None:
            return self._custom(features[0], mask, ragged)
        length = features[0].shape[-2] if features[0].dim() > 2 else 1
        statistic = self._loss.unpack(ragged, mask, self.match.teacher_sizes, length)
        return self._loss.loss(features, mask, statistic).numerator.sum()

    def _custom(self, output: Tensor, mask: Tensor | None, ragged: Ragged) -> Tensor:
        spec = self.match.spec
        assert isinstance(spec, CustomMatch)
        tokens = mask if mask is not None else output.new_ones(output.shape[:2])
        keep = tokens != 0
        sizes = _sizes_of(spec, ragged, keep, self.match.teacher_sizes)
        teacher = unpack(ragged, keep, spec.axes, sizes).to(output.dtype)
        numerators, denominators = spec.compute(output, teacher, mask, mask)
        # What a user's function divides by is known only now: its mean over the pass's examples.
        present = keep.any(dim=1).sum()
        return numerators.sum() / denominators.sum().clamp_min(1e-12) * present


def _sizes_of(spec: CustomMatch, ragged: Ragged, keep: Tensor, known: FeatureSizes) -> FeatureSizes:
    """Work the one unknown size of a module's output out of the number of its values."""
    lengths = keep.sum(dim=1)
    row = int(lengths.argmax())
    per_token = int(lengths[row]) ** spec.axes.count("token")
    entries = int(ragged.offsets[row + 1] - ragged.offsets[row]) // max(per_token, 1)
    if "hidden" in spec.axes:
        others = prod(row_shape(spec.axes, 1, FeatureSizes(1, known.heads, known.layers)))
        return FeatureSizes(entries // others, known.heads, known.layers)
    return FeatureSizes(1, entries if "head" in spec.axes else known.heads, known.layers)
