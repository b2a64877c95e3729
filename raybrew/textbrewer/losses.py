"""TextBrewer's losses by its names: functions of whole batches that return one number.

kd_ce_loss(logits_S, logits_T, temperature)     hid_mse_loss(state_S, state_T, mask)

They are this package's losses with the mean taken, so they also take half precision and float64.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from raybrew.losses.kd import make_kd_loss
from raybrew.losses.match_loss import MatchLoss
from raybrew.matches.spec import match_loss

PADDED_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "mmd": {"divisor": "length"},
    "nst": {"divisor": "length"},
    "attention_ce": {"keys": "all"},
    "attention_ce_mean": {"keys": "all"},
}
"""Options with which a value moves with the padding, as TextBrewer's do where a mask is given."""


def kd_function(name: str) -> Callable[..., Tensor]:
    """Return a loss on logits: (logits_S, logits_T, temperature=1) → mean over the rows.

    Args:
        name: of this package's losses, or an import path, "package.module:name".

    Raises:
        ConfigError: there is no such loss.
    """
    loss = make_kd_loss(name)

    def kd_loss(logits_S: Tensor, logits_T: Tensor, temperature: Any = 1) -> Tensor:
        rows = loss(logits_S, logits_T, temperature)
        return rows.sum() / max(rows.numel(), 1)

    return kd_loss


def match_function(name: str, options: Mapping[str, Any] | None = None) -> Callable[..., Tensor]:
    """Return a match loss: (state_S, state_T, mask=None) → one number.

    Args:
        name: of this package's losses, or an import path.
        options: of the loss; TextBrewer's values need `PADDED_OPTIONS`, the default.

    Raises:
        ConfigError: there is no such loss, or it doesn't take the options.
    """
    build_match_loss(name, options)

    def loss_of_match(
        state_S: Tensor | Sequence[Tensor],
        state_T: Tensor | Sequence[Tensor],
        mask: Tensor | None = None,
    ) -> Tensor:
        several = not isinstance(state_S, Tensor)
        student, teacher = (
            [state] if isinstance(state, Tensor) else list(state) for state in (state_S, state_T)
        )
        feature = "attention" if student[0].dim() == 4 else "hidden"
        loss = build_match_loss(name, options, feature, several_layers=several)
        partial = loss.loss(student, mask, loss.teacher_statistic(teacher, mask))
        return partial.numerator.sum() / partial.denominator.sum().clamp_min(1e-12)

    return loss_of_match


def build_match_loss(
    name: str, options: Mapping[str, Any] | None = None, *feature: Any, **layers: bool
) -> MatchLoss:
    """Build a match loss with TextBrewer's options where none are given."""
    chosen = PADDED_OPTIONS.get(name, {}) if options is None else options
    return match_loss(name, chosen, *feature, **layers)


kd_mse_loss = kd_function("mse")
kd_ce_loss = kd_function("ce")
att_mse_loss = match_function("attention_mse")
att_mse_sum_loss = match_function("attention_mse_sum")
att_ce_loss = match_function("attention_ce")
att_ce_mean_loss = match_function("attention_ce_mean")
hid_mse_loss = match_function("hidden_mse")
cos_loss = match_function("cos")
pkd_loss = match_function("pkd")
fsp_loss = match_function("fsp")
mmd_loss = match_function("mmd")
