"""Errors of raybrew, events of faults, and import paths as users write them."""

import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

# Every error that raybrew raises on purpose.
#
# A message says what failed, what was expected, what came, and what to do next. All of them hold
# their message alone, so they survive the pickling that a Ray boundary asks of them.


class RaybrewError(Exception):
    """Base of every raybrew error."""


class ConfigError(RaybrewError, ValueError):
    """A job, or a part of one, asks for something that can't be."""


class DataError(RaybrewError, ValueError):
    """A data set or a row of it isn't what the task says it is."""


class TeacherError(RaybrewError):
    """A teacher can't be loaded, is lost, or gave an answer that can't be used."""


class TeacherDropped(TeacherError):
    """A teacher has no replica, and by its `on_loss: drop` the run goes on without it."""


class LabelError(RaybrewError):
    """A label is missing, damaged, or was written by something else than what asks for it."""


class LabelsLost(LabelError):
    """Labels that were in the store are lost, and no teacher is up to compute them."""


class StoreFullError(LabelError):
    """A label can't be stored: the disk is full, or the store has its greatest size."""


class TrainingError(RaybrewError):
    """Training can't go on, e.g. because its loss is not a number."""


class CheckpointError(RaybrewError):
    """A checkpoint can't be written, or can't be read back."""


class Terminated(KeyboardInterrupt):
    """The run was stopped by SIGTERM."""


@dataclass(frozen=True)
class Event:
    """A fault that a run recovered from, or another turn that it took.

    Args:
        fault: its kind, a few words, such as `rank died`.
        who: what it happened to, such as `rank 1` or `teacher 'a', replica 0`.
        what: what happened, and what was done.
        lost_s: time that it cost, seconds; None where nothing waited.
        lost_steps: optimizer steps that were taken again.
        is_fault: False for what goes as it should, such as a teacher that leaves.
    """

    fault: str
    who: str
    what: str
    lost_s: float | None = None
    lost_steps: int = 0
    is_fault: bool = True

    def message(self) -> dict[str, Any]:
        """Return it as a message to the driver, see `raybrew.runs.events`."""
        return {"kind": "event", "event": asdict(self)}


# Functions of the user's, by import path, so that a file can name them and workers find them.


def import_callable(target: Callable[..., Any] | str, what: str) -> Callable[..., Any]:
    """Resolve an import path, "package.module:name"; a callable is itself.

    Args:
        target: either.
        what: what it is, for the message.

    Raises:
        ConfigError: nothing callable is there.
    """
    if not isinstance(target, str):
        return target
    module_name, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{what} {target!r} can't be imported: {error}. Give it as "
            '"package.module:name", from a module that every worker can import.'
        ) from error
    if not callable(found):
        raise ConfigError(f"{what} {target!r} is a {type(found).__name__}, which can't be called.")
    return found
