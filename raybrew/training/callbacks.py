"""What training calls.

Hooks of the driver, the user's callbacks and postprocessors, progress bars.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from torch import Tensor, nn

from raybrew.config import TrainingConfig
from raybrew.errors import ConfigError, Event, import_callable
from raybrew.training.snapshot import Snapshot
from raybrew.training.step import MicroBatch, StepBatch

# What the training loop tells the world, and what it asks of it.


class Hooks(Protocol):
    """What the loop tells the world."""

    def begin(self, step: int, num_steps: int) -> None:
        """Training starts, or goes on, after `step` steps; on rank 0 only."""
        ...

    def losses(self, step: int, values: dict[str, float]) -> None:
        """Losses of a global batch; on rank 0 only."""
        ...

    def progress(self, step: int) -> None:
        """`step` steps are done; on rank 0 only."""
        ...

    def evaluating(self, done: int, total: int) -> None:
        """`done` examples of an evaluation are done; on rank 0 only."""
        ...

    def evaluated(self, step: int, values: dict[str, float], save: "Saver") -> None:
        """An evaluation is done; every rank calls it equally often."""
        ...

    def checkpoint(self, snapshot: Snapshot) -> None:
        """A checkpoint is due; on rank 0 only, which holds all of it."""
        ...

    def save_requested(self) -> bool:
        """Whether a checkpoint is asked for at once; every rank calls it, and gets one answer."""
        ...

    def survived(self, event: Event) -> None:
        """Something went wrong, and training goes on; on rank 0 only."""
        ...


class Saver(Protocol):
    """Writes the checkpoint of this moment."""

    def __call__(self, folder: Path) -> None:
        """Write into an empty folder."""
        ...


# What a user adds to training: callbacks at evaluations, changes to the student's batches.

Postprocessor = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


def check_extensions(config: TrainingConfig) -> None:
    """Refuse an import path that leads nowhere.

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


def postprocessors_of(config: TrainingConfig) -> list[Postprocessor]:
    """Return the functions that change the student's batches."""
    return [
        import_callable(p, "training.batch_postprocessors") for p in config.batch_postprocessors
    ]


def postprocess(batch: StepBatch, functions: Sequence[Postprocessor]) -> StepBatch:
    """Let the user's functions change what the student reads.

    Raises:
        ConfigError: a function returned no labels, or other numbers of rows or labels.
    """
    if not functions:
        return batch
    return replace(batch, micro_batches=[_changed(m, functions) for m in batch.micro_batches])


def _changed(batch: MicroBatch, functions: Sequence[Postprocessor]) -> MicroBatch:
    if not len(batch.labels):
        return batch
    for function in functions:
        found = dict(function({**batch.inputs, "labels": batch.labels}))
        rows = {name: len(each) for name, each in found.items()}
        name = getattr(function, "__name__", function)
        if "labels" not in found or set(rows.values()) != {len(batch.labels)}:
            raise ConfigError(
                f"training.batch_postprocessors: {name}: expected `labels` and the model's inputs "
                f"with {len(batch.labels)} rows each, as it was given, got {rows}"
            )
        # The loss is divided by how many labels the data has.
        if not torch.equal(found["labels"] >= 0, batch.labels >= 0):
            raise ConfigError(
                f"training.batch_postprocessors: {name}: expected a label where there was one and "
                "none elsewhere, got others"
            )
        batch = replace(batch, labels=found.pop("labels"), inputs=found)
    return batch


# Progress bars on the driver, by rich: one line a stage, kept when the stage is done.


class Bars:
    """Named bars; a context manager. Written to standard error, so that output stays clean."""

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def start(self, name: str, total: float, unit: str) -> None:
        """Open a bar, or begin an open one again."""
        if name in self._bars:
            self._progress.reset(self._bars[name], total=total)
        else:
            self._bars[name] = self._progress.add_task(name, total=total, unit=unit, note="")

    def advance(self, name: str, by: float) -> None:
        """Move a bar on."""
        self._progress.advance(self._bars[name], by)

    def move_to(self, name: str, done: float) -> None:
        """Set how far a bar is."""
        self._progress.update(self._bars[name], completed=done)

    def note(self, name: str, text: str) -> None:
        """Set what stands behind a bar, if it is there."""
        if name in self._bars:
            self._progress.update(self._bars[name], note=text)
