"""When a training of TextBrewer's steps, saves and ends: a function of the batch's number alone."""

from dataclasses import dataclass

from raybrew.errors import ConfigError
from raybrew.textbrewer.training_config import TrainingConfig


@dataclass(frozen=True)
class Timetable:
    """The course of a training.

    Args:
        num_batches: in all.
        accumulation: batches of an optimizer step.
        per_epoch: batches of an epoch, the last of which may make no whole step; None where
            epochs don't count.
        ckpt_frequency: checkpoints in an epoch.
        ckpt_epoch_frequency: epochs from one with checkpoints to the next.
        ckpt_steps: steps between checkpoints, where epochs don't count.
    """

    num_batches: int
    accumulation: int
    per_epoch: int | None = None
    ckpt_frequency: int = 1
    ckpt_epoch_frequency: int = 1
    ckpt_steps: int | None = None

    @staticmethod
    def of_epochs(config: TrainingConfig, num_epochs: int, per_epoch: int) -> "Timetable":
        """Return the course over so many epochs of so many batches.

        Raises:
            ConfigError: an epoch is less than a step.
        """
        accumulation = config.gradient_accumulation_steps
        if per_epoch < accumulation:
            raise ConfigError(
                f"gradient_accumulation_steps: expected no more than the {per_epoch} batches of an "
                f"epoch, got {accumulation}"
            )
        return Timetable(
            per_epoch * int(num_epochs),
            accumulation,
            per_epoch,
            config.ckpt_frequency,
            config.ckpt_epoch_frequency,
        )

    @staticmethod
    def of_steps(config: TrainingConfig, num_steps: int) -> "Timetable":
        """Return the course over so many steps."""
        accumulation = config.gradient_accumulation_steps
        return Timetable(int(num_steps) * accumulation, accumulation, ckpt_steps=config.ckpt_steps)

    @property
    def num_steps(self) -> int:
        """Optimizer steps in all."""
        return self.steps_after(self.num_batches)

    def epoch(self, batch: int) -> int:
        """Epoch of a batch, from 0."""
        return 0 if self.per_epoch is None else batch // self.per_epoch

    def place(self, batch: int) -> int:
        """Which batch of its epoch a batch is, from 0."""
        return batch if self.per_epoch is None else batch % self.per_epoch

    def ends_step(self, batch: int) -> bool:
        """Whether the optimizer steps after a batch."""
        return (self.place(batch) + 1) % self.accumulation == 0

    def ends_epoch(self, batch: int) -> bool:
        """Whether a batch is an epoch's last; gradients of half a step end with it."""
        return self.per_epoch is not None and self.place(batch) + 1 == self.per_epoch

    def steps_after(self, batches: int) -> int:
        """Optimizer steps that were taken after so many batches."""
        if self.per_epoch is None:
            return batches // self.accumulation
        epochs, rest = divmod(batches, self.per_epoch)
        return epochs * (self.per_epoch // self.accumulation) + rest // self.accumulation

    def saves(self, batch: int) -> bool:
        """Whether there is a checkpoint after a batch that ends a step."""
        step = self.steps_after(batch + 1)
        if self.per_epoch is None:
            return step == self.num_steps or (
                self.ckpt_steps is not None and step % self.ckpt_steps == 0
            )
        steps = self.per_epoch // self.accumulation
        places = [int(steps * part / self.ckpt_frequency) for part in range(self.ckpt_frequency)]
        epoch = self.epoch(batch) + 1
        is_last = epoch == self.num_batches // self.per_epoch
        return step % steps in places and (epoch % self.ckpt_epoch_frequency == 0 or is_last)
