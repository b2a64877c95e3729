"""TextBrewer's `DistillationConfig`, and the objective of this package that it stands for.

temperature, kd_loss_type, … ──► raybrew.DistillationConfig
intermediate_matches         ──► MatchSpec, each with its teacher
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from raybrew.config import DistillationConfig as Objective
from raybrew.config.distillation import from_textbrewer
from raybrew.errors import ConfigError
from raybrew.matches.presets import resolve_matches
from raybrew.matches.spec import MatchSpec
from raybrew.textbrewer.config import Config
from raybrew.textbrewer.presets import TEMPERATURE_SCHEDULER, WEIGHT_SCHEDULER


class DistillationConfig(Config):
    """Settings of the loss; the names of methods are those of `presets`.

    Args:
        temperature: softens the logits of both sides.
        temperature_scheduler: none, or [name, arguments…].
        hard_label_weight: weight of the `losses` that the student's adaptor gives.
        hard_label_weight_scheduler: none, or the name of what takes its place over the steps.
        kd_loss_type: loss on the logits.
        kd_loss_weight: its weight.
        kd_loss_weight_scheduler: none, or the name of what takes its place over the steps.
        probability_shift: swap the true class's logit with the teacher's largest one.
        intermediate_matches: dicts of layer_T, layer_S, feature, loss, weight and proj; with
            several teachers also `teacher`, the number of one.
        is_caching_logits: keep what teachers answer, by content, for every later epoch and run.

    Raises:
        ConfigError: a name that doesn't exist, or a match that can't be.
    """

    def __init__(
        self,
        temperature: float = 4,
        temperature_scheduler: Any = "none",
        hard_label_weight: float = 0,
        hard_label_weight_scheduler: str = "none",
        kd_loss_type: str = "ce",
        kd_loss_weight: float = 1,
        kd_loss_weight_scheduler: str = "none",
        probability_shift: bool = False,
        intermediate_matches: Sequence[Mapping[str, Any]] | None = None,
        is_caching_logits: bool = False,
    ):
        self.temperature = temperature
        self.temperature_scheduler = temperature_scheduler
        self.hard_label_weight = hard_label_weight
        self.hard_label_weight_scheduler = hard_label_weight_scheduler
        self.kd_loss_type = kd_loss_type
        self.kd_loss_weight = kd_loss_weight
        self.kd_loss_weight_scheduler = kd_loss_weight_scheduler
        self.probability_shift = probability_shift
        self.intermediate_matches = list(intermediate_matches or ())
        self.is_caching_logits = is_caching_logits
        self.objective()
        self.matches()

    def objective(self) -> Objective:
        """Return the losses on logits and labels in this package's words."""
        values = vars(self)
        own = {key: values[key] for key in _SCHEDULERS if _is_users(key, values[key])}
        skipped = {"intermediate_matches", "is_caching_logits", *own}
        given = from_textbrewer({key: each for key, each in values.items() if key not in skipped})
        for key, name in own.items():
            given[key] = name
            if key.endswith("_weight_scheduler"):
                given[key.removesuffix("_scheduler")] = 1.0  # the schedule's value is the weight
        try:
            return Objective.model_validate(given)
        except ValidationError as error:
            mistakes = "; ".join(
                f"{'.'.join(map(str, each['loc']))}: {each['msg']}, got {each['input']!r}"
                for each in error.errors()
            )
            raise ConfigError(f"DistillationConfig: {mistakes}") from error

    def matches(self) -> list[MatchSpec]:
        """Return the matches; the number of a teacher is its name."""
        given = [
            {
                **match,
                "teacher": None if match.get("teacher") is None else str(match["teacher"]),
                "options": match.get("options", _PADDED.get(str(match.get("loss")), {})),
            }
            for match in self.intermediate_matches
        ]
        specs = resolve_matches(given)
        for spec in specs:
            spec.build_loss()
        return specs


_PADDED = {
    "mmd": {"divisor": "length"},
    "nst": {"divisor": "length"},
    "attention_ce": {"keys": "all"},
    "attention_ce_mean": {"keys": "all"},
}
"""TextBrewer's values move with the padding where its adaptors give a mask; so do they here."""

_SCHEDULERS = {
    "temperature_scheduler": TEMPERATURE_SCHEDULER,
    "kd_loss_weight_scheduler": WEIGHT_SCHEDULER,
    "hard_label_weight_scheduler": WEIGHT_SCHEDULER,
}


def _is_users(key: str, value: Any) -> bool:
    """Whether a scheduler is one that the script has registered."""
    return isinstance(value, str) and value in _SCHEDULERS[key].added
