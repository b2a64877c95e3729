"""The objective of a task: the terms of its loss, their weights, denominators and sum."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raybrew.config import DistillationConfig
from raybrew.data.payload import Signal
from raybrew.errors import ConfigError
from raybrew.labels.logits import SoftLabel
from raybrew.losses.hard import make_hard_loss
from raybrew.losses.kd import make_kd_loss
from raybrew.losses.mixture import (
    RowInputs,
    combine,
    make_mixture,
    probability_shift,
    teacher_weights,
)
from raybrew.losses.numerics import TopK
from raybrew.losses.schedules import make_temperature_scheduler, make_weight_schedule
from raybrew.matches.plan import MatchTerm, TaskMatch
from raybrew.objective.rows import (
    NO_EXAMPLE_INPUTS,
    AlignedRows,
    ExampleInputs,
    align_rows,
    index_of,
)
from raybrew.tasks import TASK_TYPES
from raybrew.tasks.task_type import TaskType, View

SoftLabels = Mapping[str, Mapping[str, SoftLabel]]
"""By teacher, by name of the signal: a row for each example."""


class TrainProgress(NamedTuple):
    """Where in the run a step is.

    Args:
        progress: steps taken before it, as a share of all steps, in [0, 1).
        epoch: from 0.
        step: from 0.
        reported: whether the metrics of the step are reported, which are more than training needs.
    """

    progress: float = 0.0
    epoch: int = 0
    step: int = 0
    reported: bool = False


_NOT_SHIFT_INVARIANT = ("mse", "bce")
_SOFTMAX_LOSSES = (
    *("ce", "kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "adaptive_kl", "tvd"),
    *("dkd", "dist", "logit_std"),
)
"""Losses on a softmax over the classes."""


class KDTerm:
    """The loss on the logits of one task: teachers, their mixture, the temperature, the KD loss.

    Args:
        config: names and options.
        teachers: weight of each of the task's teachers.
        logits: the signal that carries them.
        sum_over_ranks: adds a tensor up over ranks.
        kind: of the task.

    Raises:
        ConfigError: a name or an option that doesn't exist, or a combination that can't be.
    """

    def __init__(
        self,
        config: DistillationConfig,
        teachers: Mapping[str, float],
        logits: Signal,
        sum_over_ranks: Callable[[Tensor], Tensor] | None,
        kind: TaskType = TASK_TYPES["sequence-classification"],
    ):
        self._config, self._signal, self._kind = config, logits, kind
        self._loss_name = config.kd_loss or kind.kd_loss
        self._base = config.temperature if kind.softened else 1.0
        self._teachers, self._static = tuple(teachers), list(teachers.values())
        self._sum_over_ranks = sum_over_ranks
        self._loss = make_kd_loss(self._loss_name, config.kd_loss_options, scale_t2=config.scale_t2)
        self._mixture = make_mixture(config.mixture, config.mixture_options)
        self._temperature = make_temperature_scheduler(
            config.temperature_scheduler, config.temperature_scheduler_options
        )
        self._check_mixture()
        if not kind.exclusive:
            self._check_not_exclusive()
        if logits.top_k is not None:
            self._check_top_k()

    @property
    def needs_labels(self) -> dict[str, bool]:
        """Settings of this term, and whether each needs a true label in each row."""
        return {
            "probability_shift": self._config.probability_shift,
            f"kd_loss {self._loss_name}": self._loss.needs_labels,
            f"mixture {self._config.mixture}": self._mixture.needs_labels,
        }

    @property
    def needs_route(self) -> bool:
        """Whether a column of the data names each row's teacher."""
        return self._mixture.needs("route")

    def rows(self, rows: AlignedRows, progress: TrainProgress) -> Tensor:
        """Return the loss of each row, (R,).

        Args:
            rows: of the student, (R, C), and of each teacher in the order of the weights.
            progress: where in the run this is.
        """
        student, inputs = rows.student_logits, self._inputs(rows, progress)
        tops = [one.logits for one in rows.teachers if isinstance(one.logits, TopK)]
        if self._signal.top_k is not None:
            return self._top_k_loss(student, tops, inputs)
        assert not tops, "logits are rows of one width"
        logits = torch.stack([e.logits for e in rows.teachers if isinstance(e.logits, Tensor)])
        weights = teacher_weights(self._mixture, logits, self._static, inputs)
        labels = inputs.labels
        if self._mixture.sums_losses:
            return self._summed_losses(student, logits, weights, labels)
        # The scheduler may look at the target, and the mean of probabilities at the temperature:
        # the schedule sees the target at the base temperature.
        target = self._shifted(combine(self._mixture, logits, weights, self._base), labels)
        temperature = self._row_temperature(student, target)
        if temperature is not self._base:
            target = self._shifted(combine(self._mixture, logits, weights, temperature), labels)
        return self._loss(student, target, temperature, labels)

    @property
    def has_agreement(self) -> bool:
        """Whether rows have one class that a model finds most likely, and all logits are there."""
        return self._kind.exclusive and self._signal.top_k is None

    @torch.no_grad()
    def agreement(self, rows: AlignedRows, progress: TrainProgress) -> Tensor:
        """Return where the student and the teachers' mixture find the same class most likely, (R,).

        Args:
            rows: as of `rows`.
            progress: where in the run this is.
        """
        logits = torch.stack([e.logits for e in rows.teachers if isinstance(e.logits, Tensor)])
        mixed = self.target(logits, self._inputs(rows, progress))
        return mixed.argmax(dim=-1) == rows.student_logits.argmax(dim=-1)

    def _inputs(self, rows: AlignedRows, progress: TrainProgress) -> RowInputs:
        inputs = rows.inputs._replace(epoch=progress.epoch)
        if any(one.available is not None for one in rows.teachers):
            available = torch.stack([one.is_available for one in rows.teachers])
            inputs = inputs._replace(available=available)
        return inputs if self._kind.exclusive else inputs._replace(labels=None)

    def target(self, teacher_logits: Tensor, rows: RowInputs) -> Tensor:
        """See `Objective.target`."""
        if not self._kind.exclusive:
            rows = rows._replace(labels=None)
        weights = teacher_weights(self._mixture, teacher_logits, self._static, rows)
        if self._mixture.sums_losses:
            # No one target is trained on; the mean of the logits stands for the ensemble.
            shares = weights / weights.sum(dim=0)
            return (shares.unsqueeze(-1) * teacher_logits).sum(dim=0)
        return combine(self._mixture, teacher_logits, weights, self._base)

    def _summed_losses(
        self, student: Tensor, logits: Tensor, weights: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Weigh each teacher's own loss."""
        # A teacher of no weight may have any logits: 0 · inf is no number.
        unweighted = (weights == 0).unsqueeze(-1)
        logits = torch.where(unweighted, student.detach().to(logits.dtype), logits)
        losses = []
        for share, each in zip(weights, logits, strict=True):
            target = self._shifted(each, labels)
            temperature = self._row_temperature(student, target)
            losses.append(share * self._loss(student, target, temperature, labels))
        return torch.stack(losses).sum(dim=0)

    def _top_k_loss(self, student: Tensor, tops: Sequence[TopK], inputs: RowInputs) -> Tensor:
        """Weigh each teacher's own loss; where one teacher is picked, that is the mixture's."""
        if not len(student):
            return student.sum(dim=-1) * 0.0
        labels = inputs.labels
        values = torch.stack([one.values for one in tops])
        # The share of a teacher alone is 1, by whatever rule; a sum of losses keeps its weight.
        weights = (
            values.new_ones(values.shape[:2])
            if len(tops) == 1 and not self._mixture.sums_losses
            else teacher_weights(self._mixture, values, self._static, inputs)
        )
        if len(tops) == 1:
            return weights[0] * self._loss(student, tops[0], self._base, labels)
        total = weights.new_zeros(len(student))
        for share, top in zip(weights, tops, strict=True):
            # A teacher of no weight may have any logits, and its rows cost nothing.
            rows = share.nonzero().squeeze(-1)
            of_rows = None if labels is None else labels[rows]
            loss = self._loss(student[rows], top.take(rows), self._base, of_rows)
            total = total.index_add(0, rows, (share[rows] * loss).to(total.dtype))
        return total

    def _shifted(self, target: Tensor, labels: Tensor | None) -> Tensor:
        # What the loss is taken of is shifted, the mixture rather than its teachers.
        if not self._config.probability_shift:
            return target
        assert labels is not None, "only classes that exclude each other are shifted"
        return probability_shift(target, labels)

    def _row_temperature(self, student_logits: Tensor, target: Tensor) -> float | Tensor:
        return self._temperature(
            student_logits, target, self._base, sum_over_ranks=self._sum_over_ranks
        )

    def _check_mixture(self) -> None:
        name, loss = self._config.mixture, self._loss_name
        if self._mixture.combination == "mean_probs" and loss in _NOT_SHIFT_INVARIANT:
            raise ConfigError(
                f"distillation.mixture: expected mean_logits or sum_losses with kd_loss {loss!r}, "
                f"got {name!r}, whose mean of probabilities leaves the size of the logits open"
            )

    def _check_not_exclusive(self) -> None:
        kind, config = self._kind.name, self._config
        wrong = []
        if self._loss_name in _SOFTMAX_LOSSES or self._loss.needs_labels:
            wrong.append(f"kd_loss {self._loss_name!r} (leave it out for {self._kind.kd_loss})")
        if self._mixture.needs_labels or self._mixture.weighting == "softmax":
            wrong.append(f"mixture {config.mixture!r} (take mean_logits or sum_losses)")
        if config.probability_shift:
            wrong.append("probability_shift")
        if wrong:
            raise ConfigError(
                f"distillation: expected what suits {kind}, whose rows have no one true class, got "
                + "; ".join(wrong)
            )

    def _check_top_k(self) -> None:
        config, mixture = self._config, self._mixture
        wrong = []
        if self._kind.layout == "position":
            wrong.append(f"the classes of {self._kind.name} are the tokens of each text, all kept")
        if not self._loss.top_k:
            wrong.append(
                f"kd_loss {self._loss_name!r} has no form over the largest logits: take ce, kl, "
                "reverse_kl, jsd, skew_kl, skew_reverse_kl or tvd"
            )
        if config.temperature_scheduler != "constant":
            wrong.append("a temperature for each row needs all logits")
        if config.probability_shift:
            wrong.append("the true class of probability_shift may not be among the largest")
        one_teacher = mixture.weighting in ("random", "route")
        by_loss = mixture.sums_losses and mixture.weighting == "fixed"
        mixes = len(self._teachers) > 1 or mixture.sums_losses
        if mixes and not (one_teacher or by_loss):
            wrong.append(
                f"mixture {config.mixture!r} needs all logits of its teachers: take sum_losses, "
                "random or route"
            )
        if wrong:
            raise ConfigError(f"labels.top_k: {'; '.join(wrong)}; or leave top_k out")


class Objective:
    """The terms of one task's loss: their sums, their counts and their weights.

    Args:
        config: what to compute; None for the hard loss alone. A weight of the hard labels that is
            None is 0.
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
        kind: TaskType = TASK_TYPES["sequence-classification"],
        orders: Mapping[str, Sequence[int]] | None = None,
    ):
        self._teachers, self._kind = tuple(teachers), kind
        self._logits, self._orders = logits or Signal(), orders or {}
        self._hard = make_hard_loss(kind.hard_loss)
        c = config or DistillationConfig(kd_loss_weight=0.0, hard_label_weight=1.0)
        self._kd = KDTerm(c, teachers, self._logits, sum_over_ranks, kind)
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
            asked |= self._kd.needs_labels
        return tuple(name for name, needed in asked.items() if needed)

    @property
    def needs_route(self) -> bool:
        """Whether a column of the data names each row's teacher."""
        return "kd" in self._weights and self._kd.needs_route

    def denominators(
        self, labels: np.ndarray, lengths: Sequence[np.ndarray] = (), unreached: int = 0
    ) -> dict[str, float]:
        """Return what each term's numerators over the whole global batch are divided by.

        Args:
            labels: (B, …), or flat over the tokens of the batch, as the task type counts them.
            lengths: of each forward pass, over all ranks and micro-batches, the real tokens of its
                examples as the student reads them, int64 (b,); needed for matches alone.
            unreached: rows of logits for which no teacher has an answer.
        """
        rows, labelled = self._kind.counts(labels)
        of_logits = {"kd": float(rows - unreached), "hard": float(labelled)}
        found = {name: of_logits[name] for name in self._weights if name in of_logits}
        return found | {name: term.denominator(lengths) for name, term in self._matches.items()}

    def numerators(
        self,
        student: View,
        soft: SoftLabels,
        progress: TrainProgress,
        examples: ExampleInputs = NO_EXAMPLE_INPUTS,
        features: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """Return each term's sum over these rows.

        Args:
            student: its logits, labels, and mask of real tokens.
            soft: the teachers' labels; a teacher that was dropped is left out.
            progress: where in the run this is.
            examples: keys, routes and alignments of the examples.
            features: by match term, the student's features, projected.

        Returns:
            By term, a scalar with a graph, also where no row counts; of a step that is reported
            also `agreement`, a count of rows.
        """
        sums: dict[str, Tensor] = {}
        if "kd" in self._weights:
            logits = {n: soft[n][self._logits.name] for n in self._teachers if n in soft}
            outputs = align_rows(
                self._kind.layout, student, logits, self._teachers, examples, self._orders
            )
            sums["kd"] = torch.stack(
                [self._kd.rows(each, progress).sum() for each in outputs]
            ).sum()
            if progress.reported and self._kd.has_agreement:
                same = [self._kd.agreement(each, progress).sum() for each in outputs]
                sums["agreement"] = torch.stack(same).sum().to(sums["kd"].dtype)
        if "hard" in self._weights:
            sums["hard"] = self._hard_sum(student)
        for name, term in self._matches.items():
            assert features is not None, "matches compare the student's features"
            label = soft.get(term.match.teacher, {}).get(term.match.signal.name)
            sums[name] = term.numerator(features[name], student.inputs_mask, label)
        return sums

    def target(self, teacher_logits: Tensor, rows: RowInputs) -> Tensor:
        """Mix dense logits of the teachers, (K, R, C), at the configured temperature.

        Returns:
            The ensemble's raw logits, (R, C).
        """
        return self._kd.target(teacher_logits, rows)

    def weights(self, progress: TrainProgress) -> dict[str, float]:
        """Return each term's weight at a point of the run."""
        return {
            name: weight * self._schedules[name](progress.progress)
            if name in self._schedules
            else weight
            for name, weight in self._weights.items()
        }

    def total(
        self,
        numerators: Mapping[str, Tensor],
        denominators: Mapping[str, float],
        progress: TrainProgress,
    ) -> Tensor:
        """Return the weighted sum of the normalised terms, a scalar with a graph."""
        terms = [
            weight * numerators[name] / _divisor(denominators[name])
            for name, weight in self.weights(progress).items()
        ]
        return torch.stack(terms).sum()

    def metrics(
        self, sums: Mapping[str, float], denominators: Mapping[str, float], progress: TrainProgress
    ) -> dict[str, float]:
        """Return the losses of a global batch from the sums over all ranks: terms and `loss`.

        Of a step that is reported also `agreement`, the share of rows in which the student and the
        teachers' mixture find the same class most likely.
        """
        losses = {name: sums[name] / _divisor(denominators[name]) for name in self._weights}
        weights = self.weights(progress)
        losses["loss"] = sum(weights[name] * losses[name] for name in self._weights)
        if "agreement" in sums:
            losses["agreement"] = sums["agreement"] / _divisor(denominators["kd"])
        return losses

    def _hard_sum(self, student: View) -> Tensor:
        if student.losses:
            # The adaptor's are means over the labelled rows of this pass: labels that are neither
            # negative nor NaN.
            labelled = torch.stack([(labels >= 0).sum() for labels in student.labels]).sum()
            mean = torch.stack([loss.mean() for loss in student.losses]).sum()
            # The mean of nothing is NaN.
            return (mean * labelled).masked_fill(labelled == 0, 0.0)
        index = index_of(self._kind.layout, student)
        each = [
            self._hard(index.of_logits(logits), index.of_labels(labels)).sum()
            for logits, labels in zip(student.logits, student.labels, strict=True)
        ]
        return torch.stack(each).sum()


def _divisor(count: float) -> float:
    # 0 ÷ 0 is 0.
    return count if count > 0 else 1.0
