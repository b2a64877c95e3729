"""All terms of a task's loss, their weights and their sum."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from raybrew.config import DistillationConfig
from raybrew.errors import ConfigError
from raybrew.kinds import KINDS, Kind
from raybrew.labels.payload import Signal
from raybrew.losses.hard import make_hard_loss
from raybrew.losses.schedules import make_weight_schedule
from raybrew.matching.plan import TaskMatch
from raybrew.matching.student_side import MatchTerm
from raybrew.models.adaptors import View
from raybrew.objective.answers import answered_rows, index_of
from raybrew.objective.facts import BatchFacts, Position, SoftLabels
from raybrew.objective.knowledge import KnowledgeTerm

__all__ = ["Objective"]


class Objective:
    """Sums and counts of the loss of one task.

    Args:
        config: what to compute; None for the hard loss alone.
        teachers: weight of each of the task's teachers.
        sum_over_ranks: adds a tensor up over ranks, for what is a mean over the whole batch
            (temperature schedulers); None where there is one rank.
        matches: of the task.
        logits: the signal that carries the teachers' logits.
        kind: of the task.
        orders: by teacher whose classes are in another order, its number of each class.

    Raises:
        ConfigError: a name or an option that doesn't exist, or no term at all.
    """

    def __init__(
        self,
        config: DistillationConfig | None,
        teachers: Mapping[str, float],
        sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
        matches: Sequence[TaskMatch] = (),
        logits: Signal | None = None,
        kind: Kind = KINDS["sequence-classification"],
        orders: Mapping[str, Sequence[int]] | None = None,
    ):
        self._teachers, self._kind = tuple(teachers), kind
        self._logits, self._orders = logits or Signal(), orders or {}
        self._hard = make_hard_loss(kind.hard_loss)
        c = config or DistillationConfig(kd_loss_weight=0.0, hard_label_weight=1.0)
        self._knowledge = KnowledgeTerm(c, teachers, self._logits, sum_over_ranks, kind)
        self._matches = {m.term: MatchTerm(m) for m in matches if m.spec.weight}
        self._schedules = {
            "kd": make_weight_schedule(
                c.kd_loss_weight_scheduler, c.kd_loss_weight_scheduler_options
            ),
            "hard": make_weight_schedule(
                c.hard_label_weight_scheduler, c.hard_label_weight_scheduler_options
            ),
        }
        weights = {"kd": c.kd_loss_weight, "hard": c.hard_label_weight}
        self._weights = {name: weight for name, weight in weights.items() if weight}
        self._weights |= {name: term.match.spec.weight for name, term in self._matches.items()}
        # A match that is only resolved later counts as one.
        if not self._weights and not c.matches:
            raise ConfigError(
                "distillation: expected kd_loss_weight or hard_label_weight above 0, or matches, "
                "got 0 for both and no match, which leaves nothing to learn from"
            )

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms."""
        return tuple(self._weights)

    @property
    def needs_labels(self) -> tuple[str, ...]:
        """The settings that need a true label in each row."""
        asked = {"hard_label_weight": "hard" in self._weights}
        if "kd" in self._weights:
            asked |= self._knowledge.needs_labels
        return tuple(name for name, needed in asked.items() if needed)

    @property
    def needs_route(self) -> bool:
        """Whether a column of the data names each row's teacher."""
        return "kd" in self._weights and self._knowledge.needs_route

    def denominators(self, facts: BatchFacts) -> dict[str, float]:
        """Return what each term's numerators over the whole global batch are divided by."""
        rows, labelled = self._kind.counts(facts.labels)
        counts = {"kd": float(rows - facts.unreached), "hard": float(labelled)}
        found = {name: counts[name] for name in self._weights if name in counts}
        if self._matches:
            parts = facts.lengths_of_parts()
            found |= {name: term.denominator(parts) for name, term in self._matches.items()}
        return found

    def numerators(
        self,
        student: View,
        soft: SoftLabels,
        position: Position,
        row_keys: Tensor | None = None,
        route: Tensor | None = None,
        features: Mapping[str, Sequence[Tensor]] | None = None,
        alignment: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return each term's sum over these rows.

        Args:
            student: its logits, labels, and mask of real tokens.
            soft: what the teachers said; one that was dropped is left out.
            position: where in the run this is.
            row_keys: int64 (b,), tells examples apart for a random pick of teachers.
            route: int64 (b,), index of each row's teacher.
            features: by match term, the student's features, projected.
            alignment: by teacher with tokens of its own, int64 (b, L), -1 = none of them answers.

        Returns:
            By term, a scalar with a graph, also where no row counts.
        """
        sums: dict[str, Tensor] = {}
        if "kd" in self._weights:
            outputs = answered_rows(
                self._kind.layout,
                student,
                {name: soft[name][self._logits.name] for name in self._teachers if name in soft},
                self._teachers,
                row_keys,
                route,
                alignment or {},
                self._orders,
            )
            each = [self._knowledge.rows(**vars(rows), position=position).sum() for rows in outputs]
            sums["kd"] = torch.stack(each).sum()
        if "hard" in self._weights:
            sums["hard"] = self._hard_sum(student)
        for name, term in self._matches.items():
            assert features is not None, "matches compare the student's features"
            label = soft.get(term.match.teacher, {}).get(term.match.signal.name)
            sums[name] = term.numerator(features[name], student.inputs_mask, label)
        return sums

    def target(
        self,
        teacher_logits: Tensor,
        labels: Tensor,
        position: Position | None = None,
        row_keys: Tensor | None = None,
        route: Tensor | None = None,
    ) -> Tensor:
        """Mix the teachers at the configured temperature; what an ensemble of them answers.

        Args:
            teacher_logits: (K, b, C), raw.
            labels: int64 (b,).
            position: where in the run this is.
            row_keys: int64 (b,).
            route: int64 (b,).

        Returns:
            (b, C), raw logits.
        """
        return self._knowledge.target(
            teacher_logits, labels, position or Position(), row_keys, route
        )

    def weights(self, position: Position) -> dict[str, float]:
        """Return each term's weight at a point of the run."""
        return {
            name: weight * self._schedules[name](position.progress)
            if name in self._schedules
            else weight
            for name, weight in self._weights.items()
        }

    def total(
        self,
        numerators: Mapping[str, Tensor],
        denominators: Mapping[str, float],
        position: Position,
    ) -> Tensor:
        """Return the weighted sum of the normalised terms, a scalar with a graph."""
        terms = [
            weight * numerators[name] / _divisor(denominators[name])
            for name, weight in self.weights(position).items()
        ]
        return torch.stack(terms).sum()

    def figures(
        self, sums: Mapping[str, float], denominators: Mapping[str, float], position: Position
    ) -> dict[str, float]:
        """Return the losses of a global batch from the sums over all ranks: terms and `loss`."""
        losses = {name: sums[name] / _divisor(denominators[name]) for name in self._weights}
        weights = self.weights(position)
        losses["loss"] = sum(weights[name] * losses[name] for name in self._weights)
        return losses

    def _hard_sum(self, student: View) -> Tensor:
        if student.losses:
            # The adaptor's are means over the labelled rows of this pass.
            labelled = _labelled(student)
            mean = torch.stack([loss.mean() for loss in student.losses]).sum()
            # The mean of nothing is NaN.
            return (mean * labelled).masked_fill(labelled == 0, 0.0)
        index = index_of(self._kind.layout, student)
        each = [
            self._hard(index.of_logits(logits), index.of_labels(labels)).sum()
            for logits, labels in zip(student.logits, student.labels, strict=True)
        ]
        return torch.stack(each).sum()


def _labelled(student: View) -> Tensor:
    """Count the labels of a pass: negative ones and NaN say that there is none."""
    return torch.stack([(labels >= 0).sum() for labels in student.labels]).sum()


def _divisor(count: float) -> float:
    # 0 ÷ 0 is 0.
    return count if count > 0 else 1.0
