"""What training calls: hooks, the user's callbacks and postprocessors."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from raybrew.config import TrainingConfig
from raybrew.errors import ConfigError, Event, import_callable
from raybrew.training.snapshot import Snapshot
from raybrew.training.step import MicroBatch, StepBatch


class Hooks:
    """What the loop reports to; these do nothing. All but three are called on rank 0 only."""

    def begin(self, step: int, num_steps: int) -> None:
        """Training starts, or continues, after `step` steps."""

    def losses(self, step: int, values: dict[str, float]) -> None:
        """Losses of a global batch."""

    def progress(self, step: int) -> None:
        """`step` steps are done."""

    def evaluating(self, done: int, total: int) -> None:
        """`done` examples of an evaluation are done."""

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        """An evaluation is done; every rank calls it equally often."""

    def checkpoint(self, snapshot: Snapshot) -> None:
        """A checkpoint is due; rank 0 holds all of it."""

    def save_requested(self) -> bool:
        """Whether a checkpoint is to be saved now; every rank calls it, and gets one answer."""
        return False

    def recovered(self, event: Event) -> None:
        """A fault occurred, and training continues."""


def check_extensions(config: TrainingConfig) -> None:
    """Refuse an import path of a callback or postprocessor that leads nowhere.

    Raises:
        ConfigError: names the field.
    """
    for name in ("callbacks", "batch_postprocessors"):
        for given in getattr(config, name):
            import_callable(given, f"training.{name}")


def run_callbacks(config: TrainingConfig, model: nn.Module, step: int) -> None:
    """Call the user's callbacks with the bare model, which stays in the mode that it is in."""
    training = model.training
    model.eval()
    for given in config.callbacks:
        callback: Callable[..., Any] = import_callable(given, "training.callbacks")
        with torch.random.fork_rng(devices=[]):
            callback(model=model, step=step)
    model.train(training)


def postprocess(batch: StepBatch, config: TrainingConfig) -> StepBatch:
    """Let the user's functions change what the student reads.

    Raises:
        ConfigError: a function returned no labels, or other numbers of rows or labels.
    """
    for path in config.batch_postprocessors:
        function = import_callable(path, "training.batch_postprocessors")
        micros = [_postprocessed(micro, function) for micro in batch.micro_batches]
        batch = replace(batch, micro_batches=micros)
    return batch


def _postprocessed(batch: MicroBatch, function: Callable[..., Any]) -> MicroBatch:
    if not len(batch.labels):
        return batch
    found = dict(function({**batch.inputs, "labels": batch.labels}))
    rows = {name: len(each) for name, each in found.items()}
    what = f"training.batch_postprocessors: {getattr(function, '__name__', function)}"
    if "labels" not in found or set(rows.values()) != {len(batch.labels)}:
        raise ConfigError(
            f"{what}: expected `labels` and the model's inputs with {len(batch.labels)} rows each, "
            f"as it was given, got {rows}"
        )
    # The loss is divided by how many labels the data has.
    if not torch.equal(found["labels"] >= 0, batch.labels >= 0):
        raise ConfigError(
            f"{what}: expected a label where there was one and none elsewhere, got others"
        )
    return replace(batch, labels=found.pop("labels"), inputs=found)
