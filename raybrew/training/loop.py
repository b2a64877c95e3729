"""The training loop of the student, on one rank: plain PyTorch, no Ray.

    sequence, labels ──► batches, prefetched ──► step ──► every few steps: losses
                                                  └─────► at times: evaluation, checkpoint

What happens outside of training (reports, progress bars, files) is behind `Hooks`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from raybrew.config import TrackingConfig, TrainingConfig
from raybrew.data.batch_sequence import BatchSequence, rank_rows
from raybrew.data.payload import Payload
from raybrew.data.split import EncodedSplit, Padding, collate, collate_labels
from raybrew.evaluation.predict import ModelOnDevice, predict
from raybrew.labels.source import LabelSource
from raybrew.models.inputs import padding_of
from raybrew.objective import Objective, TrainProgress
from raybrew.objective.balancing import TaskGradients
from raybrew.training.batches import BatchBuilder, ReadyStep
from raybrew.training.callbacks import Hooks, postprocess, run_callbacks
from raybrew.training.checkpoints import CheckpointSchedule
from raybrew.training.job import ResolvedTask
from raybrew.training.module import Sample, StudentModule
from raybrew.training.optimization import Optimization
from raybrew.training.prefetch import wait_for
from raybrew.training.snapshot import Snapshot, TrainerState, load_checkpoint
from raybrew.training.step import (
    StepBatch,
    StudentStep,
    check_finite_losses,
    evaluation_memory,
    record_skipped_step,
    step_memory,
)
from raybrew.training.world import World, seed_step_rng


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


@dataclass
class StudentTraining:
    """A student, what it learns from, and how.

    Args:
        module: the student with its projections.
        wrapped: the same, as training calls it (DDP, or the module itself).
        tokenizer: saved with the model.
        tasks: in the order of the sequence.
        objectives: one a task.
        weights: of the tasks' losses.
        sequence: the global batches.
        labels: soft labels; None without teachers.
        optimization: of the module's parameters.
        config: steps, batch size, seed.
        tracking: how often to report.
        world: this rank.
        num_steps: length of the run.
        per_task_gradients: combines the gradients of a step's tasks; None for their sum.

    Attributes:
        state: how far the run is.
        waited_s: seconds that steps waited for labels and batches.
    """

    module: StudentModule
    wrapped: nn.Module
    tokenizer: PreTrainedTokenizerBase
    tasks: Sequence[ResolvedTask]
    objectives: Sequence[Objective]
    weights: Sequence[float]
    sequence: BatchSequence
    labels: LabelSource | None
    optimization: Optimization
    config: TrainingConfig
    tracking: TrackingConfig
    world: World
    num_steps: int
    per_task_gradients: TaskGradients | None = None
    state: TrainerState = field(default_factory=TrainerState)
    waited_s: float = 0.0
    _batches: BatchBuilder = field(init=False, repr=False)
    _take_step: StudentStep = field(init=False, repr=False)
    _checkpoint_schedule: CheckpointSchedule = field(init=False, repr=False)
    _since: tuple[float, int, float] = field(init=False, repr=False)

    def run(self, hooks: Hooks) -> dict[str, float]:
        """Train to the end.

        Returns:
            The last evaluation, the last losses, and the times of the loop in seconds.
        """
        self.begin(hooks)
        while not self.done:
            self.advance(hooks)
        return self.state.metrics

    def begin(self, hooks: Hooks) -> None:
        """Get ready to train, or to continue training."""
        self._batches = BatchBuilder(
            self.tasks,
            self.objectives,
            [self.padding(number) for number in range(len(self.tasks))],
            self.weights,
            self.sequence,
            self.labels,
            self.config,
            self.world,
        )
        self._take_step = StudentStep(
            self.wrapped, self.objectives, self.optimization, self.world, self.per_task_gradients
        )
        self._checkpoint_schedule = CheckpointSchedule(
            self.config.checkpoint_every, self.config.checkpoint_every_minutes, self.world
        )
        self.wrapped.train()
        self._since = (time.perf_counter(), self.step, self.waited_s)
        if self.world.rank == 0:
            hooks.begin(self.step, self.num_steps)

    def advance(self, hooks: Hooks) -> None:
        """Train up to the next evaluation, and evaluate."""
        end = self._next_evaluation()
        with self._batches.prefetch(range(self.step, end)) as steps:
            for ready in steps:
                self.waited_s += steps.waited_s
                self._train_step(ready, hooks)
                if self.step < end:
                    self._save_if_due(hooks)
        began = time.perf_counter()
        with evaluation_memory(self.config):
            values = self.evaluate(hooks)
        start, first, waited_s = self._since
        self._since = (start + time.perf_counter() - began, first, waited_s)
        values["train/progress"] = self.step / self.num_steps
        hooks.evaluated(self.step, values)
        self._save_if_due(hooks, evaluation=values)
        if self.world.rank == 0:
            run_callbacks(self.config, self.model, self.step)

    def _train_step(self, ready: ReadyStep, hooks: Hooks) -> None:
        wait_for(ready[1], ready[0])
        seed_step_rng(self.config.seed, self.step, self.world.rank, self.world.device)
        # Not where batches are built: whatever a postprocessor draws follows from this seed.
        batches = [postprocess(batch, self.config) for batch in ready[0]]
        epoch = self.step // self.sequence.steps_per_epoch
        reported = self._report_due(self.step + 1)
        position = TrainProgress(self.step / self.num_steps, epoch, self.step, reported)
        with step_memory(self.config, self.world.size):
            sums = self._take_step(batches, position)
        self.state.step += 1
        skipped = self._take_step.skipped
        # Collectives: every rank gets here on the same steps.
        if skipped or reported:
            values = self._losses(ready[0], sums, position)
            if skipped:
                self._record_skipped(values, hooks)
            else:
                check_finite_losses(self.step, values)
            if reported:
                self._report(values, hooks, sum(each.num_examples for each in ready[0]))
        if self.world.rank == 0:
            hooks.progress(self.step)

    def _losses(
        self,
        batches: Sequence[StepBatch],
        sums: Sequence[Mapping[str, Tensor]],
        position: TrainProgress,
    ) -> dict[str, float]:
        """Return `train/<task>/<term>` of the step's global batches."""
        local = torch.stack([value for each in sums for value in each.values()]).double()
        total = iter(self.world.all_reduce(local).tolist())
        losses: dict[str, list[float]] = {}
        for batch, each in zip(batches, sums, strict=True):
            named = {name: next(total) for name in each}
            found = self.objectives[batch.task].metrics(named, batch.denominators, position)
            for term, loss in found.items():
                losses.setdefault(f"train/{self.tasks[batch.task].name}/{term}", []).append(loss)
        return {name: sum(each) / len(each) for name, each in losses.items()}

    def _record_skipped(self, losses: Mapping[str, float], hooks: Hooks) -> None:
        totals = {name: value for name, value in losses.items() if name.endswith("/loss")}
        event = record_skipped_step(self.state, self.config.on_nan, totals)
        self.state.metrics["train/skipped_steps"] = float(self.state.skipped)
        if self.world.rank == 0:
            hooks.recovered(event)

    def _report_due(self, step: int) -> bool:
        return step % self.tracking.log_every == 0 or step in (1, self.num_steps)

    def _report(self, values: dict[str, float], hooks: Hooks, num_examples: int) -> None:
        values["train/learning_rate"] = self.optimization.learning_rate
        values["train/gradient_norm"] = float(self._take_step.gradient_norm)
        scaler = self.optimization.amp.scaler
        if scaler.is_enabled():
            # A step that overflowed was skipped and halved it.
            values["train/loss_scale"] = scaler.get_scale()
        # Means since the last report, without evaluations.
        now, (start, first, waited_s) = time.perf_counter(), self._since
        num_steps = self.step - first
        values["time/step_s"] = (now - start) / num_steps
        values["time/examples_per_s"] = num_examples * self.world.size / values["time/step_s"]
        if self.labels is not None:
            values["time/label_wait_s"] = (self.waited_s - waited_s) / num_steps
        self._since = (now, self.step, self.waited_s)
        self.state.metrics |= values
        if self.world.rank == 0:
            hooks.losses(self.step, values)

    def _next_evaluation(self) -> int:
        per_epoch, num_steps = self.sequence.steps_per_epoch, self.num_steps
        later = range(self.step + 1, num_steps + 1)
        return next(s for s in later if evaluation_due(self.config, s, per_epoch, num_steps))

    def samples(self, size: int = 2) -> Iterator[Sample]:
        """Yield a small batch of each task, the first rows of its training split."""
        for number, task in enumerate(self.tasks):
            rows = np.arange(min(size, len(task.train)))
            inputs = collate(task.train.student, rows, self.padding(number))
            labels = collate_labels(task.train, rows, inputs["input_ids"].shape[1])
            device = self.world.device
            yield {n: each.to(device) for n, each in inputs.items()}, labels.to(device), number

    def evaluate(self, hooks: Hooks) -> dict[str, float]:
        """Evaluate on every task that has rows for it; ranks share the work.

        Args:
            hooks: called with the examples that rank 0 has done.

        Returns:
            `eval/<task>/<metric>` of each, and `eval/score`, the mean of the main metrics.
        """
        values: dict[str, float] = {}
        scores = []
        for number, task in enumerate(self.tasks):
            if task.eval is None:
                continue
            metrics = self._evaluate_task(number, task.eval, hooks)
            values |= {f"eval/{task.name}/{name}": value for name, value in metrics.items()}
            main = task.kind.main_metric(task.label_names)
            scores.append(metrics.get(main, float("nan")))
        if scores:
            values["eval/score"] = float(np.mean(scores))
        self.state.metrics |= values
        return values

    def _evaluate_task(self, number: int, split: EncodedSplit, hooks: Hooks) -> dict[str, float]:
        """Return the metrics of a task, of whose rows every rank predicts its part."""
        task, world = self.tasks[number], self.world
        model = ModelOnDevice(
            self.module.model_of(number), task.reads, self.padding(number), world.device
        )
        rows = rank_rows(np.arange(len(split)), world.rank, world.size)
        predicted = predict(
            model,
            task.kind,
            split,
            rows,
            batch_size=self.config.eval_batch_size,
            on_progress=hooks.evaluating if world.rank == 0 else None,
        )
        parts = world.all_gather((rows, predicted))
        order = np.concatenate([part for part, _ in parts])
        gathered = Payload.concat([part for _, part in parts])
        return task.kind.metrics(gathered, split, order, task.label_names)

    def _save_if_due(self, hooks: Hooks, evaluation: Mapping[str, float] | None = None) -> None:
        self.state.record_score(None if evaluation is None else evaluation.get("eval/score"))
        # Every rank asks on the same steps: both are collectives.
        requested = self._report_due(self.step) and hooks.save_requested()
        schedule = self._checkpoint_schedule
        due = schedule.due(self.step)
        if evaluation is not None:
            is_best = self.state.best_step == self.step
            due = due or is_best or not schedule.is_set or self.done
        if (requested or due) and self.world.rank == 0:
            hooks.checkpoint(self.snapshot())

    def snapshot(self) -> Snapshot:
        """Copy all that the checkpoint of this moment holds."""
        return Snapshot(
            self.model, self.tokenizer, self.optimization, self.state, self.module.extra_modules
        )

    def save(self, folder: Path) -> None:
        """Write the checkpoint of this moment into an empty folder."""
        self.snapshot().write(folder)

    def resume(self, folder: Path, *, own_settings: bool = False) -> None:
        """Continue from a checkpoint.

        Args:
            folder: of the checkpoint.
            own_settings: keep the optimizer's settings of this job, as population based training
                does; else those of the checkpoint are taken.

        Raises:
            CheckpointError: it can't be read back.
        """
        self.state = load_checkpoint(
            folder,
            self.model,
            self.optimization,
            self.module.extra_modules,
            own_settings=own_settings,
        )

    @property
    def step(self) -> int:
        """Steps that were taken."""
        return self.state.step

    @property
    def done(self) -> bool:
        """Whether training is over: at its last step, or by early stopping.

        It follows from the steps and scores alone, so all ranks agree, and so does a resumed run.
        """
        patience = self.config.early_stopping_patience
        if patience is None or self.state.best_score is None or self.step >= self.num_steps:
            return self.step >= self.num_steps
        per_epoch = self.sequence.steps_per_epoch
        since = range(self.state.best_step + 1, self.step + 1)
        due = [evaluation_due(self.config, step, per_epoch, self.num_steps) for step in since]
        return sum(due) >= patience

    @property
    def model(self) -> nn.Module:
        """The bare model, for checkpoints: of transformers, or a `MultiTaskStudent`."""
        return self.module.model

    def padding(self, task: int) -> Padding:
        """Return how batches of a task are filled up."""
        model: Any = self.module.model_of(task)
        return padding_of(self.tokenizer, model.config, self.tasks[task].kind.layout)
