"""What a step of a rank needs, made ready before the step comes.

    step ──► rows of the sequence ──► labels ──► collate ──► a block of memory ──► device
                    └──► counts of the global batch ──► denominators

All of it is a function of the step and of the labels, so it may be made at any time before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from raybrew.config import TrainingConfig
from raybrew.data.sampler import BatchSequence
from raybrew.labels.source import LabelSource
from raybrew.objective import Objective, Position
from raybrew.student.ahead import Ahead
from raybrew.student.batches import StudentTask, batch_facts, micro_batches_of
from raybrew.student.buffers import Blocks, wait_for
from raybrew.student.step import MicroBatch
from raybrew.student.world import World

__all__ = ["ReadyStep", "StepMaker"]


@dataclass(frozen=True)
class ReadyStep:
    """What a step needs.

    Args:
        task: whose batch it is.
        batches: what each forward pass of this rank reads, on the device.
        denominators: of the global batch.
        position: where in the run the step is.
        copied: on a GPU, the event after which the tensors are there.
    """

    task: int
    batches: list[MicroBatch]
    denominators: Mapping[str, float]
    position: Position
    copied: "torch.cuda.Event | None" = None

    def arrive(self) -> list[MicroBatch]:
        """Return the batches; the current stream waits for them."""
        wait_for(self.copied, self.batches)
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
        pad_token_id: fills shorter examples up.
    """

    tasks: Sequence[StudentTask]
    objectives: Sequence[Objective]
    sequence: BatchSequence
    labels: LabelSource | None
    config: TrainingConfig
    world: World
    num_steps: int
    pad_token_id: int
    _blocks: Blocks = field(init=False)

    def __post_init__(self):
        # On their way at once: one that trains, those that lie ready, one that is being made.
        self._blocks = Blocks(self.config.prefetch + 2, self.world.device)

    def ahead(self, steps: range) -> Ahead[ReadyStep]:
        """Make these steps ready beside the thread that takes them."""
        return Ahead(self.make, steps, self.config.prefetch)

    def make(self, step: int) -> ReadyStep:
        """Make a step ready; steps must come in rising order."""
        task, rows = self.sequence.batch(step)
        passes = self.config.gradient_accumulation_steps
        batches = micro_batches_of(
            self.tasks[task],
            rows,
            {} if self.labels is None else self.labels.get(step),
            world=self.world,
            passes=passes,
            pad_token_id=self.pad_token_id,
        )
        moved, copied = self._blocks.bring(step, list(batches))
        facts = batch_facts(self.tasks[task], rows, self.world.size, passes)
        steps_per_epoch = self.sequence.steps_per_epoch
        if self.labels is not None and (step + 1) % steps_per_epoch == 0:
            self.labels.settle()
        return ReadyStep(
            task=task,
            batches=moved,
            denominators=self.objectives[task].denominators(facts),
            position=Position(step / self.num_steps, step // steps_per_epoch),
            copied=copied,
        )
