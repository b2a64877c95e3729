"""What a gradient that is not finite does to a run; a pure decision, the same on every rank."""

import math
from collections.abc import Mapping
from dataclasses import replace

from raybrew.errors import TrainingError
from raybrew.events import Event
from raybrew.student.checkpoint import Progress

__all__ = ["MAX_IN_A_ROW", "check_losses", "leave_out"]

MAX_IN_A_ROW = 25
"""After so many the weights themselves are taken to be broken."""


def check_losses(step: int, losses: Mapping[str, float]) -> None:
    """Refuse losses that are infinite or NaN though their gradient is finite.

    Logits of −∞ mask classes out. Where the student masks a class to which a teacher gives
    probability, a divergence is infinite, and its gradient doesn't show it.

    Args:
        step: its number, from 1.
        losses: of the global batch.

    Raises:
        TrainingError: names the losses.
    """
    wrong = [f"{name} {value}" for name, value in losses.items() if not math.isfinite(value)]
    if wrong:
        raise TrainingError(
            f"training, step {step}: expected finite losses, got {', '.join(wrong)} with a finite "
            "gradient. The student's logits are −∞ for classes that a label or a teacher gives "
            "probability: mask the same classes on both sides, or take a kd_loss that stays finite "
            "(reverse_kl, jsd, skew_kl, tvd)"
        )


def leave_out(
    progress: Progress, step: int, on_nan: str, losses: Mapping[str, float]
) -> tuple[Progress, Event]:
    """Return the run's progress and an event, for a step that is left out.

    Args:
        progress: before it.
        step: its number, from 1.
        on_nan: the job's `training.on_nan`.
        losses: of the global batch, for the message.

    Raises:
        TrainingError: such steps are not to be left out, or too many came one after another.
    """
    in_a_row = progress.skipped_in_a_row + 1 if progress.last_skipped == step - 1 else 1
    said = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    if on_nan == "stop" or in_a_row > MAX_IN_A_ROW:
        raise TrainingError(
            f"training, step {step}: expected a finite gradient, got NaN or infinity ({said}). "
            "Lower training.learning_rate, set training.max_grad_norm, or leave such steps out "
            f"with training.on_nan: skip (at most {MAX_IN_A_ROW} in a row)"
        )
    event = Event(
        "gradient not finite", f"step {step}", f"the step was left out on every worker ({said})"
    )
    return (
        replace(
            progress,
            skipped=progress.skipped + 1,
            skipped_in_a_row=in_a_row,
            last_skipped=step,
        ),
        event,
    )
