"""One optimizer step of the student on this rank's part of its global batches.

    micro-batch ──► forward ──► adaptor ──► objective (numerators) ──► ÷ global denominators ──►
    balancing of tasks ──► backward (gradients are summed over micro-batches, averaged over batches
    and ranks) ──► clip ──► step

The denominators are known before the forward pass: they are counts over the whole global batch.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raybrew.balancing import Balancer, TaskGradients
from raybrew.objective import Objective, Position, SoftLabels
from raybrew.student.module import StudentAnswer
from raybrew.student.scaling import AUTOCAST
from raybrew.student.world import World

__all__ = ["MicroBatch", "StepBatch", "StudentStep"]


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass reads.

    Args:
        inputs: arguments of the model, each (b, L).
        labels: (b, …) or (b, L), as the kind of task has them.
        soft: what the teachers said.
        row_keys: int64 (b,), half of each example's content key.
        route: int64 (b,), index of each row's teacher; None where the data doesn't name it.
        alignment: by teacher that reads tokens of its own, int64 (b, L): which of them answers
            for each of the student's, -1 for none.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    soft: SoftLabels
    row_keys: Tensor
    route: Tensor | None = None
    alignment: Mapping[str, Tensor] = field(default_factory=dict)


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


class StudentStep:
    """Forward, objective, backward, update.

    Args:
        model: a `StudentModule`, or DDP around it.
        objectives: one a task.
        optimizer: over the module's parameters.
        scheduler: of the learning rate.
        world: this rank.
        max_grad_norm: clips the gradient of the whole module.
        precision: autocast of the forward.
        balancer: of the module; weighs its tasks' losses.
        apart: takes the gradients of each batch apart and mixes them; they are added up if None.
        scaler: of fp16's losses.
    """

    def __init__(
        self,
        model: nn.Module,
        objectives: Sequence[Objective],
        optimizer: Optimizer,
        scheduler: LRScheduler,
        world: World,
        *,
        max_grad_norm: float | None,
        precision: str,
        balancer: Balancer | None = None,
        apart: TaskGradients | None = None,
        scaler: GradScaler | None = None,
    ):
        self._model, self._objectives = model, objectives
        self._optimizer, self._scheduler, self._world = optimizer, scheduler, world
        self._max_grad_norm, self._precision = max_grad_norm, precision
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._balancer, self._apart = balancer or Balancer(), apart
        self._scaler = scaler or GradScaler(enabled=False)
        self.skipped = False
        """Whether the last step was left out, because its gradient was not finite."""

    def __call__(self, batches: Sequence[StepBatch], position: Position) -> list[dict[str, Tensor]]:
        """Take the step.

        Args:
            batches: of one task or of several; the step follows their mean.
            position: where in the run this is.

        Returns:
            Of each batch, this rank's numerators of each term, detached; their sum over ranks
            divided by the denominators is the loss.
        """
        self._balancer.enter(position.epoch)
        sums = [
            self._backward(batch, len(batches), position, last=number == len(batches) - 1)
            for number, batch in enumerate(batches)
        ]
        if self._apart is not None:
            self._apart.put_back(position.step)
        if self._balancer.observes:
            self._observe(batches, sums, position)
        self._update(sums)
        return sums

    def _backward(
        self, batch: StepBatch, num_batches: int, position: Position, *, last: bool
    ) -> dict[str, Tensor]:
        """Add a batch's gradients; ranks sync with the step's last pass, or with each batch's."""
        sums: dict[str, Tensor] = {}
        passes = len(batch.micro_batches)
        sync = last or self._apart is not None
        for number, micro in enumerate(batch.micro_batches):
            with self._sync(sync and number == passes - 1):
                numerators, balance = self._forward(batch.task, micro, position)
                loss = self._objectives[batch.task].total(numerators, batch.denominators, position)
                share = 1 / (passes * self._world.size)
                loss = self._balancer.weigh(loss, batch.task, balance, share)
                # DDP averages over ranks; the denominators already count all of them.
                loss = loss * (batch.weight * self._world.size / num_batches)
                self._scaler.scale(loss).backward()
            for name, numerator in numerators.items():
                sums[name] = sums.get(name, 0) + numerator.detach()
        if self._apart is not None:
            self._apart.take()
        return sums

    def _observe(
        self,
        batches: Sequence[StepBatch],
        sums: Sequence[Mapping[str, Tensor]],
        position: Position,
    ) -> None:
        local = [
            self._objectives[batch.task].total(each, batch.denominators, position)
            for batch, each in zip(batches, sums, strict=True)
        ]
        for batch, loss in zip(batches, self._world.total(torch.stack(local)), strict=True):
            self._balancer.observe(batch.task, loss)

    def _forward(
        self, task: int, batch: MicroBatch, position: Position
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        device = self._world.device.type
        dtype = AUTOCAST.get(self._precision)
        with torch.autocast(device, dtype, enabled=dtype is not None):
            answer: StudentAnswer = self._model(dict(batch.inputs), batch.labels, task)
        return self._objectives[task].numerators(
            answer.view,
            batch.soft,
            position,
            batch.row_keys,
            batch.route,
            answer.features,
            batch.alignment,
        ), answer.balance

    def _sync(self, last: bool) -> AbstractContextManager[Any]:
        if isinstance(self._model, DistributedDataParallel) and not last:
            return self._model.no_sync()
        return nullcontext()

    def _update(self, sums: Sequence[Mapping[str, Tensor]]) -> None:
        self._scaler.unscale_(self._optimizer)
        # The gradient is the same on every rank, and so is what is done about it.
        finite = bool(self._gradient_norm().isfinite())
        self.skipped = not finite and not self._overflowed(sums)
        if not finite:
            with warnings.catch_warnings():
                # PyTorch takes a first step that was left out for the calls in the wrong order.
                warnings.filterwarnings(
                    "ignore", "Detected call of `lr_scheduler.step", UserWarning
                )
                self._scheduler.step()
        else:
            self._scaler.step(self._optimizer)
            self._scheduler.step()
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)

    def _overflowed(self, sums: Sequence[Mapping[str, Tensor]]) -> bool:
        """Whether the scale alone was too much for the gradient: finding it costs such steps."""
        if not self._scaler.is_enabled() or self._scaler.get_scale() <= 1:
            return False
        # A collective: every rank gets here in the same step.
        local = torch.stack([value.sum() for each in sums for value in each.values()])
        return bool(self._world.total(local).isfinite().all())

    def _gradient_norm(self) -> Tensor:
        if self._max_grad_norm is not None:
            return nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        return nn.utils.get_total_norm(gradients)
