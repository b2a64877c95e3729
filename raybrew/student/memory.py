"""Out of memory in the student's own work: an error that says what to change. No Ray."""

from collections.abc import Iterator
from contextlib import contextmanager

from raybrew.config import TrainingConfig
from raybrew.devices import device_fault
from raybrew.errors import TrainingError
from raybrew.models.pretrained import first_line

__all__ = ["evaluation_memory", "step_memory"]


@contextmanager
def step_memory(config: TrainingConfig, world_size: int) -> Iterator[None]:
    """Make an error of memory in a step one that says what to change.

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
    """Make an error of memory in an evaluation one that says what to change; see `step_memory`."""
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
