"""Every error that raybrew raises on purpose, what messages share, and events of faults.

A message states what failed, what was expected, what was found, and what to do next. An error
holds its message alone, so it survives the pickling between processes of Ray.
"""

import difflib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any


class RaybrewError(Exception):
    """Base of every raybrew error."""


class ConfigError(RaybrewError, ValueError):
    """A job, or a part of one, asks for something impossible."""


class DataError(RaybrewError, ValueError):
    """A data set, or a row of it, isn't what its task declares."""


class TeacherError(RaybrewError):
    """A teacher can't be loaded, no longer runs, or gave an answer that can't be used."""


class TeacherDropped(TeacherError):
    """No replica of a teacher is left, and by its `on_loss: drop` the run continues without it."""


class LabelError(RaybrewError):
    """A label is missing, damaged, or was written by something other than what reads it."""


class LabelsLost(LabelError):
    """Labels that were in the store are missing now, and no teacher is left to compute them."""


class StoreFullError(LabelError):
    """A label doesn't fit: the disk is full, or the store has its greatest size."""


class TrainingError(RaybrewError):
    """Training can't continue, e.g. because its loss is not a number."""


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


@contextmanager
def collect_mistakes(mistakes: list[str]) -> Iterator[None]:
    """Append the message of a ConfigError to a list: a user sees all mistakes at once."""
    try:
        yield
    except ConfigError as error:
        mistakes.append(str(error))


def did_you_mean(name: object, known: Iterable[object], count: int = 3) -> str:
    """Return "; did you mean 'a' or 'b'?" for the nearest known names; empty if none is near.

    Args:
        name: as it was given.
        known: what it could have been.
        count: names that are returned at most.
    """
    near = _nearest(str(name), sorted({str(each) for each in known}), count)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _nearest(name: str, known: list[str], count: int) -> list[str]:
    """Return names that differ in case alone, else those inside the name, then similar ones."""
    same = [each for each in known if _words_of(each) == _words_of(name)]
    if same:
        return same[:count]
    words = set(_words_of(name))
    inside = [each for each in known if len(_words_of(each)) > 1 and words >= {*_words_of(each)}]
    folded = {each.casefold(): each for each in known}
    similar = difflib.get_close_matches(name.casefold(), folded, count)
    return list(dict.fromkeys([*inside, *(folded[each] for each in similar)]))[:count]


def _words_of(name: str) -> list[str]:
    return re.split(r"[-_ .]+", name.casefold())


def unknown_name(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """Build the error for a name that isn't known: nearest names first, then all of them.

    Args:
        what: the kind of name, e.g. "KD loss".
        name: the name that came.
        known: the names that would do.

    Returns:
        The error, for the caller to raise.
    """
    names = sorted(known)
    hint = did_you_mean(name, names) or "."
    expected = f"one of {', '.join(names)}" if names else "none at all"
    return ConfigError(f"Unknown {what} {name!r}: expected {expected}{hint}")


def import_object(path: str, what: str) -> Any:
    """Return what an import path, "package.module:name", leads to; the name may have dots.

    Args:
        path: of an object of the user's, so that a file can name it and workers find it.
        what: what it is, for the message.

    Raises:
        ConfigError: nothing is there.
    """
    module, _, names = path.partition(":")
    found: Any = None
    try:
        found = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        missing = isinstance(error, AttributeError) and error.name
        near = did_you_mean(missing, dir(found)) if missing and found else ""
        raise ConfigError(
            f"{what} {path!r} can't be imported: {error}{near or '.'} Give it as "
            '"package.module:name", from a module that every worker can import.'
        ) from error
    return found


def import_callable(target: Callable[..., Any] | str, what: str) -> Callable[..., Any]:
    """Resolve the import path of a callable; a callable is itself.

    Args:
        target: either.
        what: what it is, for the message.

    Raises:
        ConfigError: nothing callable is there.
    """
    if not isinstance(target, str):
        return target
    found = import_object(target, what)
    if not callable(found):
        raise ConfigError(f"{what} {target!r} is a {type(found).__name__}, which can't be called.")
    return found
