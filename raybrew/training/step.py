"""One optimizer step of the student on this rank's part of its global batches, and steps that fail.

    micro-batch ──► forward ──► adaptor ──► objective (numerators) ──► ÷ global denominators ──►
    balancing of tasks ──► backward (gradients are summed over micro-batches, averaged over batches
    and ranks) ──► clip ──► update

The denominators are known before the forward pass: they are counts over the whole global batch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raybrew.config import TrainingConfig
from raybrew.errors import Event, TrainingError
from raybrew.models.devices import device_fault
from raybrew.models.pretrained import first_line
from raybrew.objective import Objective, SoftLabels, TrainProgress
from raybrew.objective.balancing import Balancer, TaskGradients
from raybrew.objective.rows import ExampleInputs
from raybrew.training.module import StudentModuleOutput
from raybrew.training.optimization import Optimization
from raybrew.training.snapshot import TrainerState
from raybrew.training.world import World


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass reads.

    Args:
        inputs: arguments of the model, each (b, L).
        labels: (b, …) or (b, L), as the task type has them.
        soft: soft labels, by teacher and signal.
        examples: keys, routes and alignments of the examples.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    soft: SoftLabels
    examples: ExampleInputs


@dataclass(frozen=True)
class StepBatch:
    """This rank's part of one global batch of a step.

    Args:
        task: whose it is.
        micro_batches: one a forward pass.
        denominators: of the global batch, from `Objective.denominators`.
        weight: factor on its loss.
    """

    task: int
    micro_batches: Sequence[MicroBatch]
    denominators: Mapping[str, float]
    weight: float = 1.0

    @property
    def num_examples(self) -> int:
        """Examples on this rank."""
        return sum(len(micro.labels) for micro in self.micro_batches)


class StudentStep:
    """Forward, objective, backward, update.

    Args:
        model: a `StudentModule`, or DDP around it.
        objectives: one a task.
        optimization: over the module's parameters.
        world: this rank.
        per_task_gradients: keeps the gradients of each batch apart and combines them; None for
            their sum.

    Attributes:
        skipped: whether the last step was skipped, as its gradient was not finite.
        gradient_norm: of the last step, before it was clipped, a scalar.
    """

    def __init__(
        self,
        model: nn.Module,
        objectives: Sequence[Objective],
        optimization: Optimization,
        world: World,
        per_task_gradients: TaskGradients | None = None,
    ):
        self._model, self._objectives = model, objectives
        self._optimization, self._world = optimization, world
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        bare: Any = model.module if isinstance(model, DistributedDataParallel) else model
        self._balancer: Balancer = bare.balancer
        self._per_task_gradients = per_task_gradients
        self.skipped = False
        self.gradient_norm = torch.tensor(0.0)

    def __call__(
        self, batches: Sequence[StepBatch], position: TrainProgress
    ) -> list[dict[str, Tensor]]:
        """Take the step.

        Args:
            batches: of one task or of several; the step follows their mean.
            position: where in the run this is.

        Returns:
            For each batch, this rank's numerators of each term, detached; their sum over ranks
            divided by the denominators is the loss.
        """
        self._balancer.start_step(position.epoch)
        sums = [
            self._backward(batch, len(batches), position, last=number == len(batches) - 1)
            for number, batch in enumerate(batches)
        ]
        if self._per_task_gradients is not None:
            self._per_task_gradients.put_back(position.step)
        if self._balancer.observes:
            self._observe(batches, sums, position)
        self._update(sums)
        return sums

    def _backward(
        self, batch: StepBatch, num_batches: int, position: TrainProgress, *, last: bool
    ) -> dict[str, Tensor]:
        """Add a batch's gradients; ranks sync with the step's last pass, or with each batch's."""
        sums: dict[str, Tensor] = {}
        objective, passes = self._objectives[batch.task], len(batch.micro_batches)
        # DDP averages over ranks; the denominators already count all of them.
        scale = batch.weight * self._world.size / num_batches
        sync = last or self._per_task_gradients is not None
        for number, micro in enumerate(batch.micro_batches):
            with self._sync(sync and number == passes - 1):
                numerators, balance = self._forward(batch.task, micro, position)
                loss = objective.total(numerators, batch.denominators, position)
                share = 1 / (passes * self._world.size)
                loss = self._balancer.weigh(loss, batch.task, balance, share)
                self._optimization.amp.scaler.scale(loss * scale).backward()
            for name, numerator in numerators.items():
                sums[name] = sums.get(name, 0) + numerator.detach()
        if self._per_task_gradients is not None:
            self._per_task_gradients.take()
        return sums

    def _forward(
        self, task: int, batch: MicroBatch, position: TrainProgress
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        with self._optimization.amp.autocast():
            output: StudentModuleOutput = self._model(dict(batch.inputs), batch.labels, task)
        view, features, balance = output
        numerators = self._objectives[task].numerators(
            view, batch.soft, position, batch.examples, features
        )
        return numerators, balance

    def _sync(self, sync: bool) -> AbstractContextManager[Any]:
        if isinstance(self._model, DistributedDataParallel) and not sync:
            return self._model.no_sync()
        return nullcontext()

    def _observe(
        self,
        batches: Sequence[StepBatch],
        sums: Sequence[Mapping[str, Tensor]],
        position: TrainProgress,
    ) -> None:
        local = [
            self._objectives[batch.task].total(each, batch.denominators, position)
            for batch, each in zip(batches, sums, strict=True)
        ]
        for batch, loss in zip(batches, self._world.all_reduce(torch.stack(local)), strict=True):
            self._balancer.observe(batch.task, loss)

    def _update(self, sums: Sequence[Mapping[str, Tensor]]) -> None:
        # The gradient is the same on every rank, and so is what is done about it.
        self.gradient_norm = self._optimization.clip(self._parameters)
        finite = bool(self.gradient_norm.isfinite())
        self.skipped = not finite and not self._overflowed(sums)
        if finite:
            self._optimization.step()
        else:
            self._optimization.skip()

    def _overflowed(self, sums: Sequence[Mapping[str, Tensor]]) -> bool:
        """Whether only the loss scale was too large: finding the right one costs such steps."""
        scaler = self._optimization.amp.scaler
        if not scaler.is_enabled() or scaler.get_scale() <= 1:
            return False
        # A collective: every rank gets here in the same step.
        local = torch.stack([value.sum() for each in sums for value in each.values()])
        return bool(self._world.all_reduce(local).isfinite().all())


MAX_SKIPPED_IN_A_ROW = 25
"""After so many skipped steps the weights themselves are taken to be broken."""


def check_finite_losses(step: int, losses: Mapping[str, float]) -> None:
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


def record_skipped_step(state: TrainerState, on_nan: str, losses: Mapping[str, float]) -> Event:
    """Count a step that was skipped, as its gradient was not finite; the same on every rank.

    Args:
        state: after the step.
        on_nan: the job's `training.on_nan`.
        losses: of the global batch, for the message.

    Returns:
        What happened.

    Raises:
        TrainingError: such steps are not to be skipped, or too many came one after another.
    """
    step = state.step
    in_a_row = state.skipped_in_a_row + 1 if state.last_skipped == step - 1 else 1
    values = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    if on_nan == "stop" or in_a_row > MAX_SKIPPED_IN_A_ROW:
        raise TrainingError(
            f"training, step {step}: expected a finite gradient, got NaN or infinity ({values}). "
            "Lower training.learning_rate, set training.max_grad_norm, or leave such steps out "
            f"with training.on_nan: skip (at most {MAX_SKIPPED_IN_A_ROW} in a row)"
        )
    state.skipped += 1
    state.skipped_in_a_row, state.last_skipped = in_a_row, step
    what = f"the step was left out on every worker ({values})"
    return Event("gradient not finite", f"step {step}", what)


@contextmanager
def step_memory(config: TrainingConfig, world_size: int) -> Iterator[None]:
    """Turn an error of memory in a step into one that says what to change.

    Raises:
        TrainingError: in its place. The same step would need as much again, so that no restart
            of the worker helps.
    """
    passes = config.gradient_accumulation_steps
    rows = -(-config.batch_size // (world_size * passes))
    less = [
        f"training.gradient_accumulation_steps above {passes} (the same losses, fewer examples in "
        "a forward)",
        "more workers (scaling.num_workers)",
        f"training.batch_size below {config.batch_size}",
        "a shorter max_length of the task",
    ]
    if not config.gradient_checkpointing:
        less.insert(1, "training.gradient_checkpointing: true")
    with _explained(f"a step, with {rows} examples in a forward", less):
        yield


@contextmanager
def evaluation_memory(config: TrainingConfig) -> Iterator[None]:
    """Turn an error of memory in an evaluation into one that says what to change."""
    size = config.eval_batch_size
    with _explained("an evaluation", [f"training.eval_batch_size below {size}, with --resume"]):
        yield


@contextmanager
def _explained(where: str, less: list[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if device_fault(error) != "memory":
            raise
        raise TrainingError(
            f"training: the student's worker has too little memory for {where}: "
            f"{first_line(error)}. What needs less: {'; '.join(less)}"
        ) from error
