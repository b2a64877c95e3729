"""What a step of a rank needs, made ready before the step comes.

    step ──► rows of the sequence ──► labels ──► collate ──► a block of memory ──► device
                    └──► counts of the global batch ──► denominators

All of it is a function of the step and of the labels, so it may be made at any time before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from raybrew.config import TrainingConfig
from raybrew.data.padding import Padding
from raybrew.data.sampler import BatchSequence
from raybrew.labels.source import LabelSource
from raybrew.objective import Objective, Position
from raybrew.student.ahead import Ahead
from raybrew.student.batches import StudentTask, batch_facts, micro_batches_of
from raybrew.student.buffers import Blocks, wait_for
from raybrew.student.step import StepBatch
from raybrew.student.world import World

__all__ = ["ReadyStep", "StepMaker"]


@dataclass(frozen=True)
class ReadyStep:
    """What a step needs.

    Args:
        batches: this rank's parts of the step's global batches, on the device.
        position: where in the run the step is.
        copied: on a GPU, the event after which the tensors are there.
    """

    batches: list[StepBatch]
    position: Position
    copied: "torch.cuda.Event | None" = None

    def arrive(self) -> list[StepBatch]:
        """Return the batches; the current stream waits for them."""
        wait_for(self.copied, [micro for each in self.batches for micro in each.micro_batches])
        return self.batches


@dataclass
class StepMaker:
    """Makes the steps of a rank ready, in order.

    Args:
        tasks: in the order of the sequence.
        objectives: one a task.
        sequence: the global batches.
        labels: soft labels; None without teachers.
        config: batch size, passes, how far ahead.
        world: this rank.
        num_steps: length of the run.
        paddings: of each task, what fills shorter examples up.
        weights: of the tasks' losses; 1 if empty.
    """

    tasks: Sequence[StudentTask]
    objectives: Sequence[Objective]
    sequence: BatchSequence
    labels: LabelSource | None
    config: TrainingConfig
    world: World
    num_steps: int
    paddings: Sequence[Padding]
    weights: Sequence[float] = ()
    _blocks: Blocks = field(init=False)

    def __post_init__(self):
        # On their way at once: one that trains, those that lie ready, one that is being made.
        self._blocks = Blocks(self.config.prefetch + 2, self.world.device)

    def ahead(self, steps: range) -> Ahead[ReadyStep]:
        """Make these steps ready beside the thread that takes them."""
        return Ahead(self.make, steps, self.config.prefetch)

    def make(self, step: int) -> ReadyStep:
        """Make a step ready; steps must come in rising order."""
        batches = [self._batch(number) for number in self.sequence.numbers(step)]
        flat = [micro for each in batches for micro in each.micro_batches]
        moved, copied = self._blocks.bring(step, flat)
        micros = iter(moved)
        steps_per_epoch = self.sequence.steps_per_epoch
        if self.labels is not None and (step + 1) % steps_per_epoch == 0:
            self.labels.settle()
        return ReadyStep(
            batches=[
                replace(each, micro_batches=[next(micros) for _ in each.micro_batches])
                for each in batches
            ],
            position=Position(step / self.num_steps, step // steps_per_epoch, step),
            copied=copied,
        )

    def _batch(self, number: int) -> StepBatch:
        task, rows = self.sequence.batch(number)
        passes = self.config.gradient_accumulation_steps
        micro_batches = micro_batches_of(
            self.tasks[task],
            rows,
            {} if self.labels is None else self.labels.get(number),
            world=self.world,
            passes=passes,
            padding=self.paddings[task],
        )
        facts = batch_facts(self.tasks[task], rows, self.world.size, passes)
        return StepBatch(
            task=task,
            micro_batches=list(micro_batches),
            denominators=self.objectives[task].denominators(facts),
            weight=self.weights[task] if self.weights else 1.0,
        )
