"""Methods that a user registers under a name, and how they reach other processes.

    driver                                          each worker, each teacher
    register(kind, name, value) ──► registered() ─ ─ with its plan ─ ─► install()

Import paths ("package.module:name") need none of this: every process resolves them by itself.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from raybrew.errors import ConfigError, unknown_name
from raybrew.losses.kd import KD_LOSSES, as_kd_loss
from raybrew.losses.mixture import TEACHER_WEIGHTINGS, as_teacher_weighting
from raybrew.losses.schedules import TEMPERATURE_SCHEDULERS, WEIGHT_SCHEDULES
from raybrew.matches.match_losses import MATCH_LOSSES, as_match_loss
from raybrew.matches.spec import PROJECTIONS, as_projection

Extensions = Mapping[str, Mapping[str, Any]]
"""What was registered, by kind and name; picklable as far as its functions are."""


class _Kind:
    """The methods of a kind by name, and what makes a method of a user's value."""

    def __init__(self, names: dict[str, Any], accept: Callable[[str, object], Any]):
        self.names, self.accept, self.built_in = names, accept, frozenset(names)


def _match_loss(name: str, value: object) -> Any:
    # A function of two features becomes a loss only when a match says which feature it is of.
    as_match_loss(name, value)
    return value


def _function(name: str, value: object) -> Any:
    if not callable(value):
        raise ConfigError(f"{name!r}: expected a function, got {type(value).__name__}.")
    return value


KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "kd_loss": _Kind(KD_LOSSES, as_kd_loss),
        "match_loss": _Kind(MATCH_LOSSES, _match_loss),
        "projection": _Kind(PROJECTIONS, as_projection),
        "temperature_scheduler": _Kind(TEMPERATURE_SCHEDULERS, _function),
        "weight_schedule": _Kind(WEIGHT_SCHEDULES, _function),
        "teacher_weighting": _Kind(TEACHER_WEIGHTINGS, as_teacher_weighting),
    }
)


def register(kind: str, name: str, value: Any) -> None:
    """Add a method of your own under a name, for the jobs that this process starts.

    Args:
        kind: kd_loss, (student_logits, teacher_logits, temperature) -> one value a row;
            match_loss, (student, teacher, mask=None) -> one number, or a MatchLoss;
            projection, (student_size, teacher_size) -> module;
            temperature_scheduler, (student_logits, teacher_logits, temperature) -> T, or one a row;
            weight_schedule, progress in [0, 1] -> factor;
            teacher_weighting, (teacher_logits, labels, …) -> one weight for each teacher in each
            row. Keyword-only parameters are options.
        name: how a job calls it; not one that is taken.
        value: the function.

    Raises:
        ConfigError: an unknown kind, a name that is taken, or a value that isn't of the kind.
    """
    if kind not in KINDS:
        raise unknown_name("kind of extension", kind, KINDS)
    if ":" in name:
        raise ConfigError(f"Name {name!r} looks like an import path; leave the ':' out.")
    known = KINDS[kind]
    added = known.accept(name, value)
    taken = known.names.get(name)
    if taken is not None and (name in known.built_in or taken != added):
        raise ConfigError(f"{kind} {name!r} exists already; choose another name.")
    known.names[name] = added


def registered() -> Extensions:
    """Return what was registered in this process."""
    return {
        kind: {n: v for n, v in known.names.items() if n not in known.built_in}
        for kind, known in KINDS.items()
    }


def install(extensions: Extensions) -> None:
    """Make them known in this process; what the job's driver says wins over what was there."""
    for kind, names in extensions.items():
        KINDS[kind].names.update(names)
