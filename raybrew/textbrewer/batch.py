"""Batches as TextBrewer's scripts make them: mappings, sequences, or one for each side.

{"teacher": …, "student": …, "teacher_cache": …} ──► Sides
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sides:
    """What each side reads of a batch.

    Args:
        teacher: its batch.
        student: its batch; the very same object where both read one.
        cache: the teacher's outputs, where the script brings them along.
    """

    teacher: Any
    student: Any
    cache: Any = None

    @property
    def shared(self) -> bool:
        """Whether both read the same."""
        return self.teacher is self.student

    def of_teacher(self, number: int, num_teachers: int) -> "Sides":
        """Return the sides of one of several teachers; the cache has outputs of each."""
        if num_teachers == 1 or self.cache is None:
            return self
        return replace(self, cache=self.cache[number])


def sides_of(batch: Any) -> Sides:
    """See a batch from both sides."""
    if isinstance(batch, Mapping) and "teacher" in batch and "student" in batch:
        return Sides(batch["teacher"], batch["student"], batch.get("teacher_cache"))
    return Sides(batch, batch)


def move_to_device(batch: Any, device: torch.device | str) -> Any:
    """Put every tensor of a batch, or of a model's outputs, on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, list | tuple):
        return tuple(move_to_device(each, device) for each in batch)
    if isinstance(batch, Mapping):
        return {key: move_to_device(each, device) for key, each in batch.items()}
    return batch


def call(model: nn.Module, batch: Any, arguments: Mapping[str, Any]) -> Any:
    """Run a model on a batch: by name, by position, or a tensor alone."""
    if isinstance(batch, Mapping):
        return model(**batch, **arguments)
    if isinstance(batch, list | tuple):
        return model(*batch, **arguments)
    return model(batch, **arguments)


def take_rows(batch: Any, rows: Tensor, size: int) -> Any:
    """Return some rows of a batch.

    Args:
        batch: tensors whose first axis is as long as the batch have a row for each example;
            whatever else it holds is of the whole batch.
        rows: int64 (n,).
        size: examples in the batch.
    """
    if isinstance(batch, Tensor):
        return batch[rows.to(batch.device)] if has_rows(batch, size) else batch
    if isinstance(batch, list | tuple):
        return tuple(take_rows(each, rows, size) for each in batch)
    if isinstance(batch, Mapping):
        return {key: take_rows(each, rows, size) for key, each in batch.items()}
    return batch


def has_rows(value: Tensor, size: int) -> bool:
    """Whether a tensor of a batch has a row for each example."""
    return value.dim() > 0 and value.shape[0] == size


def fields(batch: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a batch holds, with a name for each."""
    if isinstance(batch, Mapping):
        for key in sorted(batch):
            yield from fields(batch[key], f"{name}.{key}")
    elif isinstance(batch, list | tuple):
        for number, each in enumerate(batch):
            yield from fields(each, f"{name}.{number}")
    else:
        yield name, batch
