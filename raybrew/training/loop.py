"""The training loop of the student, on one rank: plain PyTorch, no Ray."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase

from raybrew.config import TrackingConfig, TrainingConfig
from raybrew.data.batch_sequence import BatchSequence, rank_rows
from raybrew.data.payload import Payload
from raybrew.data.split import EncodedSplit, Padding
from raybrew.evaluation.predict import ModelOnDevice, predict
from raybrew.labels.source import LabelSource
from raybrew.models.inputs import padding_of
from raybrew.objective import Objective
from raybrew.objective.balancing import TaskGradients
from raybrew.training.batches import BatchBuilder, ReadyStep
from raybrew.training.callbacks import Hooks, postprocess, postprocessors_of, run_callbacks
from raybrew.training.checkpoints import CheckpointSchedule
from raybrew.training.job import ResolvedTask
from raybrew.training.module import StudentModule
from raybrew.training.optimization import OptimizerSettings
from raybrew.training.snapshot import Snapshot, TrainerState, load_checkpoint, snapshot
from raybrew.training.step import (
    StudentStep,
    check_finite_losses,
    evaluation_memory,
    skip_step,
    step_memory,
)
from raybrew.training.world import World, seed_step_rng

# Evaluations of the student: when, a function of the step alone, and how, on every rank.


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


def evaluate_task(
    task: ResolvedTask,
    split: EncodedSplit,
    model: ModelOnDevice,
    world: World,
    *,
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> dict[str, float]:
    """Return the metrics of a task's rows, of which every rank predicts its part.

    Args:
        task: what the model answers.
        split: its rows for evaluation.
        model: the student, with what it reads.
        world: this rank; the call is a collective.
        batch_size: rows of a batch.
        on_progress: told the examples that rank 0 has done, and all that it does.
    """
    kind = task.kind
    rows = rank_rows(np.arange(len(split)), world.rank, world.size)
    predicted = predict(
        model,
        kind,
        split,
        rows,
        batch_size=batch_size,
        on_progress=on_progress if world.rank == 0 else None,
    )
    parts = world.gather((rows, predicted))
    order = np.concatenate([part for part, _ in parts])
    return kind.metrics(Payload.concat([part for _, part in parts]), split, order, task.label_names)


# The training loop of the student, on one rank: plain PyTorch, no Ray.
#
#     sequence, labels ──► batches, made ready ahead ──► step ──► every few steps: losses
#                                                         └─────► now and then: evaluation, snapshot
#
# What happens outside of training (reports, bars, files) is behind `Hooks`.


@dataclass
class StudentTraining:
    """A student, what it learns from, and how.

    Args:
        module: the student with its projections.
        wrapped: the same, as training calls it (DDP, or the module itself).
        tokenizer: saved with the model.
        tasks: in the order of the sequence.
        objectives: one a task.
        sequence: the global batches.
        labels: soft labels; None without teachers.
        optimizer: over the model's parameters.
        scheduler: of the learning rate.
        config: steps, batch size, seed.
        tracking: how often to report.
        world: this rank.
        num_steps: length of the run.
        weights: of the tasks' losses; 1 if empty.
        apart: mixes the gradients of a step's tasks; they are added up if None.
        scaler: of the losses; none with precisions that need none.

    Attributes:
        step: steps that were taken.
        waited_s: seconds that the student stood still for labels and batches.
    """

    module: StudentModule
    wrapped: nn.Module
    tokenizer: PreTrainedTokenizerBase
    tasks: Sequence[ResolvedTask]
    objectives: Sequence[Objective]
    sequence: BatchSequence
    labels: LabelSource | None
    optimizer: Optimizer
    scheduler: LRScheduler
    config: TrainingConfig
    tracking: TrackingConfig
    world: World
    num_steps: int
    weights: Sequence[float] = ()
    apart: TaskGradients | None = None
    scaler: GradScaler | None = None
    step: int = 0
    waited_s: float = 0.0
    _last: dict[str, float] = field(default_factory=dict)
    _take_step: StudentStep | None = None
    _maker: BatchBuilder | None = None
    _begun: tuple[float, int] = (0.0, 0)
    _cadence: CheckpointSchedule = field(init=False, repr=False)
    _progress: TrainerState = field(default_factory=lambda: TrainerState(0))

    def resume(self, folder: Path, *, own_settings: bool = False) -> None:
        """Go on from a checkpoint, with its settings or this job's `own_settings`, as PBT does."""
        settings = OptimizerSettings.of(self.optimizer)
        self._progress = load_checkpoint(
            folder,
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            projections=self.module.beside,
            scaler=self.scaler,
        )
        self.step = self._progress.step
        self._last = dict(self._progress.figures)
        if own_settings:
            settings.restore(self.optimizer, self.scheduler)

    def run(self, hooks: Hooks) -> dict[str, float]:
        """Train to the end.

        Returns:
            The last evaluation, the last losses, and the times of the loop in seconds.
        """
        self.begin(hooks)
        while self.step < self.num_steps:
            self.advance(hooks)
        return self._last

    def begin(self, hooks: Hooks) -> None:
        """Get ready to train, or to go on training."""
        self._take_step = self._build_step()
        self._maker = self._build_maker()
        self._cadence = CheckpointSchedule(
            self.config.checkpoint_every, self.config.checkpoint_every_minutes, self.world
        )
        self.wrapped.train()
        self._begun = (time.perf_counter(), self.step)
        if self.world.rank == 0:
            hooks.begin(self.step, self.num_steps)

    def advance(self, hooks: Hooks) -> None:
        """Train up to the next evaluation, and evaluate."""
        assert self._maker is not None, "`begin` comes first"
        per_epoch = self.sequence.steps_per_epoch
        end = next_evaluation(self.config, self.step, per_epoch, self.num_steps)
        with self._maker.ahead(range(self.step, end)) as ahead:
            for ready in ahead:
                self.waited_s += ahead.waited_s
                self._train_step(ready, hooks)
                if self.step < end:
                    self._save_if_due(hooks)
        with evaluation_memory(self.config):
            values = self.evaluate(hooks)
        values["train/progress"] = self.step / self.num_steps
        hooks.evaluated(self.step, values, self.save)
        self._save_if_due(hooks, evaluation=values)
        if self.world.rank == 0:
            run_callbacks(self.config, self.model, self.step)

    def _train_step(self, ready: ReadyStep, hooks: Hooks) -> None:
        seed_step_rng(self.config.seed, self.step, self.world.rank, self.world.device)
        assert self._take_step is not None, "`begin` comes first"
        # Here, not where batches are made ready: whatever is drawn follows from the seed above.
        functions = postprocessors_of(self.config)
        batches = [postprocess(batch, functions) for batch in ready.arrive()]
        with step_memory(self.config, self.world.size):
            sums = self._take_step(batches, ready.position)
        self.step += 1
        if self._take_step.skipped:
            self._left_out(self._figures(ready, sums), hooks)
        if self._report_due():
            figures = self._figures(ready, sums)
            if not self._take_step.skipped:
                check_finite_losses(self.step, figures)
            self._last |= figures
            if self.world.rank == 0:
                hooks.losses(self.step, figures)
        if self.world.rank == 0:
            hooks.progress(self.step)

    def evaluate(self, hooks: Hooks) -> dict[str, float]:
        """Evaluate on every task that has rows for it; ranks share the work.

        Args:
            hooks: told how far it is.

        Returns:
            `eval/<task>/<metric>` of each, and `eval/score`, the mean of the main metrics.
        """
        values: dict[str, float] = {}
        scores = []
        for number, task in enumerate(self.tasks):
            if task.eval is None:
                continue
            model = self.module.model_of(number)
            metrics = evaluate_task(
                task,
                task.eval,
                ModelOnDevice(model, task.reads, self.padding(number), self.world.device),
                self.world,
                batch_size=self.config.eval_batch_size,
                on_progress=hooks.evaluating,
            )
            values |= {f"eval/{task.name}/{name}": value for name, value in metrics.items()}
            main = task.kind.main_metric(task.label_names)
            scores.append(metrics.get(main, float("nan")))
        if scores:
            values["eval/score"] = float(np.mean(scores))
        self._last |= values
        return values

    def save(self, folder: Path) -> None:
        """Write the checkpoint of this moment into an empty folder."""
        self.snapshot().write(folder)

    def snapshot(self) -> Snapshot:
        """Copy all that the checkpoint of this moment holds."""
        return snapshot(
            model=self.model,
            tokenizer=self.tokenizer,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            progress=replace(self._progress, step=self.step, figures=dict(self._last)),
            projections=self.module.beside,
            scaler=self.scaler,
        )

    def _save_if_due(self, hooks: Hooks, evaluation: Mapping[str, float] | None = None) -> None:
        score = None if evaluation is None else evaluation.get("eval/score")
        self._progress = self._progress.scored(self.step, score)
        self._last |= self._progress.best
        # Every rank asks on the same steps: both are collectives.
        asked = self._report_due() and hooks.save_requested()
        due = self._cadence.due(self.step)
        if evaluation is not None:
            best = self._progress.best_step == self.step
            due = due or best or not self._cadence.is_set or self.step == self.num_steps
        if (asked or due) and self.world.rank == 0:
            hooks.checkpoint(self.snapshot())

    def _left_out(self, figures: Mapping[str, float], hooks: Hooks) -> None:
        losses = {name: value for name, value in figures.items() if name.endswith("/loss")}
        self._progress, event = skip_step(self._progress, self.step, self.config.on_nan, losses)
        self._last["train/skipped_steps"] = float(self._progress.skipped)
        if self.world.rank == 0:
            hooks.survived(event)

    def _build_step(self) -> StudentStep:
        return StudentStep(
            self.wrapped,
            self.objectives,
            self.optimizer,
            self.scheduler,
            self.world,
            max_grad_norm=self.config.max_grad_norm,
            precision=self.config.precision,
            balancer=self.module.balancer,
            apart=self.apart,
            scaler=self.scaler,
        )

    def _build_maker(self) -> BatchBuilder:
        return BatchBuilder(
            tasks=self.tasks,
            objectives=self.objectives,
            sequence=self.sequence,
            labels=self.labels,
            config=self.config,
            world=self.world,
            num_steps=self.num_steps,
            paddings=[self.padding(number) for number in range(len(self.tasks))],
            weights=self.weights,
        )

    def _report_due(self) -> bool:
        return self.step % self.tracking.log_every == 0 or self.step in (1, self.num_steps)

    def _figures(self, ready: ReadyStep, sums: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
        # A collective: every rank gets here on the same steps.
        local = torch.stack([value for each in sums for value in each.values()]).double()
        total = iter(self.world.total(local).tolist())
        losses: dict[str, list[float]] = {}
        for batch, each in zip(ready.batches, sums, strict=True):
            named = {name: next(total) for name in each}
            found = self.objectives[batch.task].figures(named, batch.denominators, ready.position)
            for term, loss in found.items():
                losses.setdefault(f"train/{self.tasks[batch.task].name}/{term}", []).append(loss)
        values = {name: sum(each) / len(each) for name, each in losses.items()}
        values["train/learning_rate"] = float(self.scheduler.get_last_lr()[0])
        if self.scaler is not None and self.scaler.is_enabled():
            # A step that overflowed was left out and halved it.
            values["train/loss_scale"] = self.scaler.get_scale()
        start, first = self._begun
        values["time/step_s"] = (time.perf_counter() - start) / (self.step - first)
        if self.labels is not None:
            values["time/label_wait_s"] = self.waited_s / (self.step - first)
        return values

    @property
    def model(self) -> nn.Module:
        """The bare model, for checkpoints: of transformers, or a `MultiTaskStudent`."""
        return self.module.model

    def padding(self, task: int) -> Padding:
        """Return how batches of a task are filled up."""
        model: Any = self.module.model_of(task)
        return padding_of(self.tokenizer, model.config, self.tasks[task].kind.layout)
