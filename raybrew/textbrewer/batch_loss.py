"""The loss of a batch, TextBrewer's terms computed by this package's losses.

rows of logits: teachers ─► mixture ─► shift, temperature ─► loss of each row ─► mean ─► kd
the adaptor's losses, a mean each ────────────────────────────────────────────────────► hard
student's features, a teacher's statistic ────────────────────────────────────────────► matches
total = Σ weight(progress) · term
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raybrew.config import DistillationConfig as Config
from raybrew.data.payload import Signal
from raybrew.errors import ConfigError, TeacherError
from raybrew.losses.mixture import RowInputs
from raybrew.losses.schedules import make_weight_schedule
from raybrew.matches.spec import MatchSpec
from raybrew.objective import TrainProgress
from raybrew.objective.objective import KDTerm
from raybrew.objective.rows import AlignedRows, TeacherRows
from raybrew.tasks.adaptors import View
from raybrew.textbrewer.reading import rows_of_labels, rows_of_logits
from raybrew.textbrewer.student import Said
from raybrew.textbrewer.teacher import Answer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Losses:
    """The loss of a batch.

    Args:
        total: with a graph.
        parts: each term without its weight, by TextBrewer's names.
    """

    total: Tensor
    parts: dict[str, Tensor]


class BatchLoss:
    """Computes the loss of a batch.

    Args:
        config: the losses on logits and labels, and their schedules.
        teachers: names of the teachers whose logits are mixed.

    Raises:
        ConfigError: a name or an option that doesn't exist.
    """

    def __init__(self, config: Config, teachers: Sequence[str]):
        self._config, self._teachers = config, tuple(teachers)
        self._has_warned = False
        self._kd_term = KDTerm(config, dict.fromkeys(teachers, 1.0), Signal(), None)
        self._schedules = (
            make_weight_schedule(
                config.kd_loss_weight_scheduler, config.kd_loss_weight_scheduler_options
            ),
            make_weight_schedule(
                config.hard_label_weight_scheduler, config.hard_label_weight_scheduler_options
            ),
        )

    @property
    def uses_logits(self) -> bool:
        """Whether anything is learnt from the teachers' logits."""
        return self._config.kd_loss_weight > 0

    def __call__(
        self,
        said: Said,
        answers: Mapping[str, Answer],
        matches: Sequence[tuple[MatchSpec, str]],
        position: TrainProgress,
    ) -> Losses:
        """Compute the loss.

        Args:
            said: of the student.
            answers: of its teachers, by name.
            matches: each with the name of its teacher, in the order of the student's features; of
                one teacher in the order of its statistics.
            position: where in the training this is.

        Raises:
            ConfigError: what doesn't fit together; names the match.
            TeacherError: logits of another shape than the student's.
        """
        parts: dict[str, Tensor] = {}
        terms: list[Tensor] = []
        kd_schedule, hard_schedule = self._schedules
        if said.view.logits and self.uses_logits:
            kd = self._kd(said, answers, position)
            parts["unweighted_kd_loss"] = kd
            terms.append(kd * (self._config.kd_loss_weight * kd_schedule(position.progress)))
        for name, weight, value in self._matched(said, answers, matches):
            parts[name] = value
            terms.append(value * weight)
        self._warn_of_no_losses(said.view)
        if said.view.losses:
            hard = hard_loss(said.view)
            parts["unweighted_hard_label_loss"] = hard
            weight = self._config.hard_label_weight * hard_schedule(position.progress)
            terms.append(hard * weight)
        if not terms:
            raise ConfigError(
                "the student's adaptor gives neither logits nor losses, and there is no match: "
                "there is nothing to learn from"
            )
        return Losses(torch.stack(terms).sum(), parts)

    def _warn_of_no_losses(self, view: View) -> None:
        if self._config.hard_label_weight and not view.losses and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "hard_label_weight is %s, but the student's adaptor gives no losses: as in "
                "TextBrewer, nothing is learnt from labels",
                self._config.hard_label_weight,
            )

    def _kd(self, said: Said, answers: Mapping[str, Answer], position: TrainProgress) -> Tensor:
        rows = rows_of_logits(said.view)
        shift = self._config.probability_shift
        labels = rows_of_labels(said.view) if shift else (None,) * len(rows)
        sums = []
        for number, (own, label) in enumerate(zip(rows, labels, strict=True)):
            soft = [
                TeacherRows(self._checked(name, answers[name].logits[number], own))
                for name in self._teachers
            ]
            each = self._kd_term.rows(AlignedRows(own.float(), soft, RowInputs(label)), position)
            sums.append(each.sum() / max(len(each), 1))
        return torch.stack(sums).sum()

    def _checked(self, teacher: str, logits: Tensor, own: Tensor) -> Tensor:
        if logits.shape != own.shape:
            raise TeacherError(
                f"{teacher}: expected logits of {own.shape[0]} rows and {own.shape[1]} classes, as "
                f"the student's, got {logits.shape[0]} rows and {logits.shape[1]} classes; rows "
                "are examples, or the tokens that logits_mask keeps"
            )
        return logits.float()

    def _matched(
        self, said: Said, answers: Mapping[str, Answer], matches: Sequence[tuple[MatchSpec, str]]
    ) -> list[tuple[str, float, Tensor]]:
        taken = dict.fromkeys(answers, 0)
        found = []
        for (spec, teacher), features in zip(matches, said.features, strict=True):
            statistic = answers[teacher].statistics[taken[teacher]]
            taken[teacher] += 1
            try:
                partial = spec.build_loss().loss(features, said.view.inputs_mask, statistic)
            except ConfigError as error:
                raise ConfigError(f"{spec.label}: {error}") from error
            value = partial.numerator.sum() / partial.denominator.sum().clamp_min(1e-12)
            found.append((f"unweighted_{spec.metric_name}", spec.weight, value))
        return found


def hard_loss(view: View) -> Tensor:
    """Return the sum of the losses that an adaptor gives, each a mean over its devices."""
    return torch.stack([_mean(loss) for loss in view.losses]).sum()


def _mean(loss: Any) -> Tensor:
    return loss.mean()
