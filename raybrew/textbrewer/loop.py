"""TextBrewer's training loop: batch by batch, an optimizer step now and then, checkpoints."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from raybrew.objective import TrainProgress
from raybrew.textbrewer.feed import Feed
from raybrew.textbrewer.precision import Precision
from raybrew.textbrewer.timetable import Timetable
from raybrew.training.callbacks import Bars

logger = logging.getLogger(__name__)

LossOf = Callable[[str, Any, TrainProgress], tuple[Tensor, Mapping[str, Tensor]]]
PRINTS = 20
"""Lines of progress in an epoch, or between two checkpoints."""


@dataclass
class Loop:
    """A training on its way.

    Args:
        timetable: when it steps, saves and ends.
        feed: its batches.
        optimizer: over all that learns.
        scheduler: of the learning rate; None for none.
        precision: of forward and backward passes.
        clipped: parameters whose gradients are clipped.
        max_grad_norm: not above 0 for none.
        loss_of: (task, batch, position) → the loss, and its terms.
        write_loss: told of each loss: (loss, number of the batch, terms).
        save: told of each checkpoint: (step, batch of the epoch, epoch).
        shows: whether this process shows how far it is.
        done: batches that were trained on.
    """

    timetable: Timetable
    feed: Feed
    optimizer: Optimizer
    scheduler: Any
    precision: Precision
    clipped: Sequence[nn.Parameter]
    max_grad_norm: float
    loss_of: LossOf
    write_loss: Callable[[Tensor, int, Mapping[str, Tensor]], None]
    save: Callable[[int, int, int], None]
    shows: bool
    done: int = 0

    @property
    def step(self) -> int:
        """Optimizer steps that were taken."""
        return self.timetable.steps_after(self.done)

    def run(self) -> None:
        """Train to the end."""
        self.optimizer.zero_grad()
        with Bars(enabled=self.shows and sys.stderr.isatty()) as bars:
            bars.start("train", self.timetable.num_steps, "steps")
            while self.done < self.timetable.num_batches:
                self._batch()
                bars.move_to("train", self.step)
        logger.info("Training finished after %d steps", self.step)

    def _batch(self) -> None:
        table, number = self.timetable, self.done
        epoch = table.epoch(number)
        position = TrainProgress(self.step / table.num_steps, epoch, self.step)
        task, batch = self.feed.next()
        loss, parts = self.loss_of(task, batch, position)
        self.write_loss(loss.detach(), number, parts)
        self.precision.backward(loss / table.accumulation)
        self.done += 1
        if table.ends_step(number):
            self._step()
            self._tell(epoch)
            if table.saves(number):
                self.save(self.step, table.place(number), epoch)
        if table.ends_epoch(number):
            self.optimizer.zero_grad()

    def _step(self) -> None:
        self.precision.step(self.optimizer, self.clipped, self.max_grad_norm)
        if self.scheduler is not None:
            self.scheduler.step()
        self.optimizer.zero_grad()

    def _tell(self, epoch: int) -> None:
        table = self.timetable
        steps = table.ckpt_steps or table.num_steps
        if table.per_epoch is not None:
            steps = table.per_epoch // table.accumulation
        if self.shows and self.step % max(1, steps // PRINTS) == 0:
            logger.info("Step %d of %d, epoch %d", self.step, table.num_steps, epoch + 1)
