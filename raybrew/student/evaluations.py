"""When the student is evaluated: a function of the step alone."""

from raybrew.config import TrainingConfig

__all__ = ["evaluation_due", "next_evaluation"]


def evaluation_due(config: TrainingConfig, step: int, steps_per_epoch: int, num_steps: int) -> bool:
    """Return whether the student is evaluated after `step` steps; it always is at the end."""
    if step == num_steps:
        return True
    if config.evaluations_per_epoch is not None:
        times = config.evaluations_per_epoch
        return step * times // steps_per_epoch > (step - 1) * times // steps_per_epoch
    if config.evaluate_every is not None:
        return step % config.evaluate_every == 0
    return step % (steps_per_epoch * (config.evaluate_every_epochs or 1)) == 0


def next_evaluation(config: TrainingConfig, step: int, steps_per_epoch: int, num_steps: int) -> int:
    """Return after how many steps the student is evaluated next; `step` have been taken."""
    later = range(step + 1, num_steps + 1)
    return next(s for s in later if evaluation_due(config, s, steps_per_epoch, num_steps))
