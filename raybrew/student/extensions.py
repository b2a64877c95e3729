"""What a user adds to training: callbacks at evaluations, changes to the student's batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from raybrew.config import TrainingConfig
from raybrew.errors import ConfigError
from raybrew.models.importing import import_callable
from raybrew.student.step import MicroBatch, StepBatch

__all__ = ["Postprocessor", "call_back", "check_extensions", "postprocess", "postprocessors_of"]

Postprocessor = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


def check_extensions(config: TrainingConfig) -> None:
    """Refuse an import path that leads nowhere.

    Raises:
        ConfigError: names the field.
    """
    for name in ("callbacks", "batch_postprocessors"):
        for given in getattr(config, name):
            import_callable(given, f"training.{name}")


def call_back(config: TrainingConfig, model: nn.Module, step: int) -> None:
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
