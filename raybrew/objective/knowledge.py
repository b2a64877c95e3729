"""The term on the logits: teachers, their mixture, the temperature, the loss of each row."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from raybrew.config import DistillationConfig
from raybrew.errors import ConfigError
from raybrew.kinds import KINDS, Kind
from raybrew.labels.payload import Signal
from raybrew.losses.mixture import combine, make_mixture, teacher_weights
from raybrew.losses.shift import probability_shift
from raybrew.losses.soft import TopK, make_kd_loss
from raybrew.losses.temperature import make_temperature_scheduler
from raybrew.objective.facts import Position
from raybrew.objective.rows import SoftRows, top_k_rows

__all__ = ["KnowledgeTerm"]

_NOT_SHIFT_INVARIANT = ("mse", "bce")
_ONE_CLASS = (
    "ce",
    "kl",
    "reverse_kl",
    "jsd",
    "skew_kl",
    "skew_reverse_kl",
    "adaptive_kl",
    "tvd",
    "dkd",
    "dist",
    "logit_std",
)
"""Losses on a softmax over the classes."""


class KnowledgeTerm:
    """The loss on the logits of one task.

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
        kind: Kind = KINDS["sequence-classification"],
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
        return self._mixture.needs_route

    def rows(
        self,
        student_logits: Tensor,
        soft: Sequence[SoftRows],
        labels: Tensor | None,
        position: Position,
        row_keys: Tensor | None,
        route: Tensor | None,
    ) -> Tensor:
        """Return the loss of each row, (R,).

        Args:
            student_logits: (R, C), raw.
            soft: what each teacher said, in the order of the weights.
            labels: (R, …).
            position: where in the run this is.
            row_keys: int64 (R,), for a random pick.
            route: int64 (R,), index of each row's teacher.
        """
        available = _available(soft)
        if not self._kind.exclusive:
            labels = None
        if self._signal.top_k is not None:
            return self._top_k_rows(
                student_logits, soft, labels, position, row_keys, route, available
            )
        logits = torch.stack([_dense(one) for one in soft])
        weights = self._row_weights(logits, labels, position, row_keys, route, available)
        if self._mixture.sums_losses:
            # A teacher of no weight may have said anything: 0 · inf is no number.
            silent = (weights == 0).unsqueeze(-1)
            logits = torch.where(silent, student_logits.detach().to(logits.dtype), logits)
            logits = torch.stack([self._shifted(one, labels) for one in logits])
            each = [
                share
                * self._loss(
                    student_logits, one, self._row_temperature(student_logits, one), labels
                )
                for share, one in zip(weights, logits, strict=True)
            ]
            return torch.stack(each).sum(dim=0)
        # The scheduler may look at the target, and the mean of probabilities at the temperature:
        # the schedule sees the target at the base temperature.
        base = self._base
        target = self._shifted(combine(self._mixture, logits, weights, base), labels)
        temperature = self._row_temperature(student_logits, target)
        if temperature is not base:
            target = self._shifted(combine(self._mixture, logits, weights, temperature), labels)
        return self._loss(student_logits, target, temperature, labels)

    def target(
        self,
        teacher_logits: Tensor,
        labels: Tensor | None,
        position: Position,
        row_keys: Tensor | None,
        route: Tensor | None,
    ) -> Tensor:
        """Mix dense logits of the teachers, (K, R, C), at the configured temperature."""
        known = labels if self._kind.exclusive else None
        weights = self._row_weights(teacher_logits, known, position, row_keys, route)
        if self._mixture.sums_losses:
            # No one target is trained on; the mean of the logits stands for the ensemble.
            shares = weights / weights.sum(dim=0)
            return (shares.unsqueeze(-1) * teacher_logits).sum(dim=0)
        return combine(self._mixture, teacher_logits, weights, self._base)

    def _top_k_rows(
        self,
        student_logits: Tensor,
        soft: Sequence[SoftRows],
        labels: Tensor | None,
        position: Position,
        row_keys: Tensor | None,
        route: Tensor | None,
        available: Tensor | None,
    ) -> Tensor:
        """Weigh each teacher's own loss; where one teacher is picked, that is the mixture's."""
        tops = [one.logits for one in soft if isinstance(one.logits, TopK)]
        if not len(student_logits):
            return student_logits.sum(dim=-1) * 0.0
        values = torch.stack([one.values for one in tops])
        # The share of a teacher alone is 1, by whatever rule; a sum of losses keeps its weight.
        weights = (
            values.new_ones(values.shape[:2])
            if len(tops) == 1 and not self._mixture.sums_losses
            else self._row_weights(values, labels, position, row_keys, route, available)
        )
        if len(tops) == 1:
            return weights[0] * self._loss(student_logits, tops[0], self._base, labels)
        total = weights.new_zeros(len(student_logits))
        for share, top in zip(weights, tops, strict=True):
            # A teacher of no weight may have said anything, and its rows cost nothing.
            rows = share.nonzero().squeeze(-1)
            loss = self._loss(
                student_logits[rows],
                top_k_rows(top, rows),
                self._base,
                None if labels is None else labels[rows],
            )
            total = total.index_add(0, rows, (share[rows] * loss).to(total.dtype))
        return total

    def _shifted(self, target: Tensor, labels: Tensor | None) -> Tensor:
        # What the loss is taken of is shifted, the mixture rather than its teachers.
        if not self._config.probability_shift:
            return target
        assert labels is not None, "only classes that exclude each other are shifted"
        return probability_shift(target, labels)

    def _row_weights(
        self,
        teacher_logits: Tensor,
        labels: Tensor | None,
        position: Position,
        row_keys: Tensor | None,
        route: Tensor | None,
        available: Tensor | None = None,
    ) -> Tensor:
        return teacher_weights(
            self._mixture,
            teacher_logits,
            self._static,
            labels,
            route=route,
            row_keys=row_keys,
            epoch=position.epoch,
            available=available,
        )

    def _row_temperature(self, student_logits: Tensor, target: Tensor) -> float | Tensor:
        return self._temperature(
            student_logits, target, self._base, sum_over_ranks=self._sum_over_ranks
        )

    def _check_mixture(self) -> None:
        name, loss = self._config.mixture, self._loss_name
        if self._mixture.combination == "mean_probs" and loss in _NOT_SHIFT_INVARIANT:
            raise ConfigError(
                f"distillation.mixture: expected mean_logits or sum_losses with kd_loss {loss!r}, "
                f"got {name!r}, whose mean of probabilities says nothing of the size of the logits"
            )

    def _check_not_exclusive(self) -> None:
        kind, config = self._kind.name, self._config
        wrong = []
        if self._loss_name in _ONE_CLASS or self._loss.needs_labels:
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
        if not self._loss.loss.top_k:
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


def _dense(rows: SoftRows) -> Tensor:
    assert isinstance(rows.logits, Tensor), "logits are rows of one width"
    return rows.logits


def _available(soft: Sequence[SoftRows]) -> Tensor | None:
    if all(one.available is None for one in soft):
        return None
    each = [
        _shape_of(one).new_ones(len(_shape_of(one)), dtype=torch.bool)
        if one.available is None
        else one.available
        for one in soft
    ]
    return torch.stack(each)


def _shape_of(rows: SoftRows) -> Tensor:
    return rows.logits.values if isinstance(rows.logits, TopK) else rows.logits
