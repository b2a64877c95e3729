"""The objective of one task: mixes its teachers, combines the terms and normalises, in one place.

    logits of each teacher ─► shift ─► weights of each row ─► mixture ─► target ─┐
    student's logits ────────────────────────────────────────────────────────────┴─► kd
    student's logits, labels ──────────────────────────────────────────────────────► hard
    total = Σ weight(progress) · numerator ÷ denominator

Every term is a sum over this rank's rows (the numerator) and a count over the whole global batch
(the denominator). The counts follow from what every rank knows of the whole batch, so nothing has
to be communicated for them, and neither ranks nor micro-batches change the loss.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raybrew.config import DistillationConfig
from raybrew.errors import ConfigError
from raybrew.losses.hard import cross_entropy
from raybrew.losses.mixture import combine, make_mixture, teacher_weights
from raybrew.losses.schedules import make_temperature_scheduler, make_weight_schedule
from raybrew.losses.shift import probability_shift
from raybrew.losses.soft import make_kd_loss
from raybrew.models.adaptors import View

__all__ = ["BatchFacts", "Objective", "Position"]


@dataclass(frozen=True)
class BatchFacts:
    """What the denominators depend on, of a global batch.

    Args:
        labels: int64 (B,); negative = none.
    """

    labels: np.ndarray


@dataclass(frozen=True)
class Position:
    """Where in the run a step is.

    Args:
        progress: steps taken before it, as a share of all steps, in [0, 1).
        epoch: from 0.
    """

    progress: float = 0.0
    epoch: int = 0


class Objective:
    """Sums and counts of the loss of one task.

    Args:
        config: what to compute; None for the hard loss alone.
        teachers: weight of each of the task's teachers.
        sum_over_ranks: adds a tensor up over ranks, for what is a mean over the whole batch
            (temperature schedulers); None where there is one rank.

    Raises:
        ConfigError: a name or an option that doesn't exist, or no term at all.
    """

    def __init__(
        self,
        config: DistillationConfig | None,
        teachers: Mapping[str, float],
        sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
    ):
        self._teachers = tuple(teachers)
        self._static_weights = list(teachers.values())
        self._sum_over_ranks = sum_over_ranks
        self._config = config or DistillationConfig(kd_loss_weight=0.0, hard_label_weight=1.0)
        c = self._config
        self._kd_loss = make_kd_loss(c.kd_loss, c.kd_loss_options, scale_t2=c.scale_t2)
        self._mixture = make_mixture(c.mixture, c.mixture_options)
        self._temperature = make_temperature_scheduler(
            c.temperature_scheduler, c.temperature_scheduler_options
        )
        schedules = {
            "kd": (c.kd_loss_weight_scheduler, c.kd_loss_weight_scheduler_options),
            "hard": (c.hard_label_weight_scheduler, c.hard_label_weight_scheduler_options),
        }
        weights = {"kd": c.kd_loss_weight, "hard": c.hard_label_weight}
        self._schedules = {name: make_weight_schedule(*one) for name, one in schedules.items()}
        self._weights = {name: weight for name, weight in weights.items() if weight}
        if not self._weights:
            raise ConfigError(
                "distillation: expected kd_loss_weight or hard_label_weight above 0, got 0 for "
                "both, which leaves nothing to learn from"
            )

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms."""
        return tuple(self._weights)

    @property
    def needs_labels(self) -> tuple[str, ...]:
        """The settings that need a true label in each row."""
        asked = {
            "hard_label_weight": "hard" in self._weights,
            "probability_shift": self._config.probability_shift,
            f"kd_loss {self._config.kd_loss}": self._kd_loss.needs_labels,
            f"mixture {self._config.mixture}": self._mixture.needs_labels,
        }
        return tuple(name for name, needed in asked.items() if needed)

    def denominators(self, facts: BatchFacts) -> dict[str, float]:
        """Return what each term's numerators over the whole global batch are divided by."""
        counts = {"kd": len(facts.labels), "hard": int((facts.labels >= 0).sum())}
        return {name: float(counts[name]) for name in self._weights}

    def numerators(
        self,
        student: View,
        soft: Mapping[str, Tensor],
        position: Position,
        row_keys: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return each term's sum over these rows.

        Args:
            student: its logits, (b, C), and labels, (b,).
            soft: by teacher, raw logits, (b, C).
            position: where in the run this is.
            row_keys: int64 (b,), tells examples apart for a random pick of teachers.

        Returns:
            By term, a scalar with a graph, also where no row counts.
        """
        sums: dict[str, Tensor] = {}
        labels = student.labels[0]
        if "kd" in self._weights:
            logits = torch.stack([soft[name] for name in self._teachers]).float()
            rows = self._kd_rows(student.logits[0], logits, labels, position, row_keys)
            sums["kd"] = rows.sum()
        if "hard" in self._weights:
            sums["hard"] = cross_entropy(student.logits[0], labels).sum()
        return sums

    def target(
        self,
        teacher_logits: Tensor,
        labels: Tensor,
        position: Position | None = None,
        row_keys: Tensor | None = None,
    ) -> Tensor:
        """Mix the teachers at the configured temperature; what an ensemble of them answers.

        Args:
            teacher_logits: (K, b, C), raw.
            labels: int64 (b,).
            position: where in the run this is.
            row_keys: int64 (b,).

        Returns:
            (b, C), raw logits.
        """
        weights = self._row_weights(teacher_logits, labels, position or Position(), row_keys)
        if self._mixture.sums_losses:
            # No one target is trained on; the mean of the logits stands for the ensemble.
            shares = weights / weights.sum(dim=0)
            return (shares.unsqueeze(-1) * teacher_logits).sum(dim=0)
        return combine(self._mixture, teacher_logits, weights, self._config.temperature)

    def weights(self, position: Position) -> dict[str, float]:
        """Return each term's weight at a point of the run."""
        return {
            name: weight * self._schedules[name](position.progress)
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
            weight * numerators[name] / max(denominators[name], 1.0)
            for name, weight in self.weights(position).items()
        ]
        return torch.stack(terms).sum()

    def figures(
        self, sums: Mapping[str, float], denominators: Mapping[str, float], position: Position
    ) -> dict[str, float]:
        """Return the losses of a global batch from the sums over all ranks: terms and `loss`."""
        losses = {name: sums[name] / max(denominators[name], 1.0) for name in self._weights}
        weights = self.weights(position)
        losses["loss"] = sum(weights[name] * losses[name] for name in self._weights)
        return losses

    def _kd_rows(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        position: Position,
        row_keys: Tensor | None,
    ) -> Tensor:
        if self._config.probability_shift:
            teacher_logits = torch.stack([probability_shift(t, labels) for t in teacher_logits])
        weights = self._row_weights(teacher_logits, labels, position, row_keys)
        if self._mixture.sums_losses:
            each = [
                share
                * self._kd_loss(
                    student_logits, one, self._row_temperature(student_logits, one), labels
                )
                for share, one in zip(weights, teacher_logits, strict=True)
            ]
            return torch.stack(each).sum(dim=0)
        # The scheduler may look at the target, and the mean of probabilities at the temperature:
        # the schedule sees the target at the base temperature.
        base = self._config.temperature
        target = combine(self._mixture, teacher_logits, weights, base)
        temperature = self._row_temperature(student_logits, target)
        if temperature is not base:
            target = combine(self._mixture, teacher_logits, weights, temperature)
        return self._kd_loss(student_logits, target, temperature, labels)

    def _row_weights(
        self,
        teacher_logits: Tensor,
        labels: Tensor,
        position: Position,
        row_keys: Tensor | None,
    ) -> Tensor:
        return teacher_weights(
            self._mixture,
            teacher_logits,
            self._static_weights,
            labels,
            row_keys=row_keys,
            epoch=position.epoch,
        )

    def _row_temperature(self, student_logits: Tensor, target: Tensor) -> float | Tensor:
        return self._temperature(
            student_logits, target, self._config.temperature, sum_over_ranks=self._sum_over_ranks
        )
