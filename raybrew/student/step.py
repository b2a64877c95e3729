"""One optimizer step of the student on this rank's part of a global batch.

    micro-batch ──► forward ──► adaptor ──► objective (numerators) ──► ÷ global denominators ──►
    backward (gradients are summed over micro-batches, averaged over ranks) ──► clip ──► step

The denominators are known before the forward pass: they are counts over the whole global batch.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raybrew.objective import Objective, Position, SoftLabels
from raybrew.student.module import StudentAnswer
from raybrew.student.world import World

__all__ = ["MicroBatch", "StudentStep"]


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


class StudentStep:
    """Forward, objective, backward, update.

    Args:
        model: a `StudentModule`, or DDP around it.
        task: index of the task that is learnt.
        objective: of that task.
        optimizer: over the module's parameters.
        scheduler: of the learning rate.
        world: this rank.
        max_grad_norm: clips the gradient of the whole module.
        precision: autocast of the forward.
    """

    def __init__(
        self,
        model: nn.Module,
        task: int,
        objective: Objective,
        optimizer: Optimizer,
        scheduler: LRScheduler,
        world: World,
        *,
        max_grad_norm: float | None,
        precision: str,
    ):
        self._model, self._task, self._objective = model, task, objective
        self._optimizer, self._scheduler, self._world = optimizer, scheduler, world
        self._max_grad_norm, self._precision = max_grad_norm, precision
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.skipped = False
        """Whether the last step was left out, because its gradient was not finite."""

    def __call__(
        self,
        micro_batches: Sequence[MicroBatch],
        denominators: Mapping[str, float],
        position: Position,
    ) -> dict[str, Tensor]:
        """Take the step.

        Args:
            micro_batches: this rank's part of the global batch.
            denominators: of the global batch, from `Objective.denominators`.
            position: where in the run this is.

        Returns:
            This rank's numerators of each term, detached; their sum over ranks divided by the
            denominators is the loss.
        """
        sums: dict[str, Tensor] = {}
        last = len(micro_batches) - 1
        for number, batch in enumerate(micro_batches):
            with self._sync(number == last):
                numerators = self._forward(batch, position)
                total = self._objective.total(numerators, denominators, position)
                # DDP averages over ranks; the denominators already count all of them.
                (total * self._world.size).backward()
            for name, numerator in numerators.items():
                sums[name] = sums.get(name, 0) + numerator.detach()
        self._update()
        return sums

    def _forward(self, batch: MicroBatch, position: Position) -> dict[str, Tensor]:
        device = self._world.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._precision == "bf16"):
            answer: StudentAnswer = self._model(dict(batch.inputs), batch.labels, self._task)
        numerators = self._objective.numerators(
            answer.view,
            batch.soft,
            position,
            batch.row_keys,
            batch.route,
            answer.features,
            batch.alignment,
        )
        if not answer.view.logits:
            return numerators
        # A head that no term looks at has a gradient too, 0: DDP waits for every parameter's.
        untouched = torch.stack([each.float().sum() for each in answer.view.logits]).sum() * 0.0
        first = next(iter(numerators))
        return numerators | {first: numerators[first] + untouched}

    def _sync(self, last: bool) -> AbstractContextManager[Any]:
        if isinstance(self._model, DistributedDataParallel) and not last:
            return self._model.no_sync()
        return nullcontext()

    def _update(self) -> None:
        # The gradient is the same on every rank, and so is what is done about it.
        self.skipped = not bool(self._gradient_norm().isfinite())
        if self.skipped:
            with warnings.catch_warnings():
                # PyTorch takes a first step that was left out for the calls in the wrong order.
                warnings.filterwarnings(
                    "ignore", "Detected call of `lr_scheduler.step", UserWarning
                )
                self._scheduler.step()
        else:
            self._optimizer.step()
            self._scheduler.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _gradient_norm(self) -> Tensor:
        if self._max_grad_norm is not None:
            return nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        return nn.utils.get_total_norm(gradients)
