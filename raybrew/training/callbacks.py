"""What training calls: hooks, the user's callbacks and postprocessors, progress bars."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
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


class Bars:
    """Named progress bars on the driver, one line a stage, which stays when the stage is done.

    A context manager. Written to standard error, so that output stays clean.
    """

    def __init__(self, enabled: bool = True):
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(min_width=14, no_wrap=True)),
            BarColumn(bar_width=16),
            TextColumn(
                "{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}",
                table_column=Column(no_wrap=True),
            ),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
            console=Console(file=sys.stderr),
            disable=not enabled,
            refresh_per_second=4,
        )

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def start(self, name: str, total: float, unit: str) -> None:
        """Open a bar, or restart an open one."""
        if name in self._bars:
            self._progress.reset(self._bars[name], total=total)
        else:
            self._bars[name] = self._progress.add_task(name, total=total, unit=unit, note="")

    def advance(self, name: str, by: float) -> None:
        """Advance a bar."""
        self._progress.advance(self._bars[name], by)

    def move_to(self, name: str, done: float) -> None:
        """Set the progress of a bar."""
        self._progress.update(self._bars[name], completed=done)

    def note(self, name: str, text: str) -> None:
        """Set the text after a bar, if the bar is open."""
        if name in self._bars:
            self._progress.update(self._bars[name], note=text)
