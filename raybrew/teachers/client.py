"""How a student's rank asks teachers: straight to the replica that is the key's home.

    question ──► split by key ──► replica 0, 1, … ──► answers put back in order

A key always goes to the same replica, so that a label asked for twice at once, by two ranks say,
is computed once. The rank owns the answers: they don't pass the driver and outlive the teacher.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from raybrew.data.encoding import EncodedView
from raybrew.errors import RaybrewError, TeacherError
from raybrew.labels.payload import Payload, Signal

__all__ = ["PoolClient", "home_of", "outcome"]


def home_of(keys: np.ndarray, num_replicas: int) -> np.ndarray:
    """Return the replica, int64 (n,), that answers each key, uint64 (n, 2)."""
    return (keys[:, 1] % np.uint64(num_replicas)).astype(np.int64)


def outcome(teacher: str, reference: ray.ObjectRef) -> Any:
    """Wait for a replica's answer.

    Raises:
        RaybrewError: what the replica raised, as it raised it.
        TeacherError: the replica is gone and Ray could not bring it back.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RaybrewError):
            raise error.cause from None
        raise TeacherError(f"teacher {teacher!r} failed: {error.cause!r}") from error
    except RayActorError as error:
        raise TeacherError(
            f"teacher {teacher!r}: a replica died and could not be restarted: {error}"
        ) from error


@dataclass
class _Gathering:
    teacher: str
    places: list[np.ndarray]
    references: list[Any]

    def result(self) -> dict[str, Payload]:
        answers = [outcome(self.teacher, reference) for reference in self.references]
        order = np.argsort(np.concatenate(self.places))
        return {
            name: Payload.concat([answer[name] for answer in answers]).take(order)
            for name in answers[0]
        }


class PoolClient:
    """Asks the replicas of a pool.

    Args:
        replicas: by teacher, the handles of its replicas.
    """

    def __init__(self, replicas: Mapping[str, Sequence[ActorHandle]]):
        self._replicas = replicas

    def ask(self, teacher: str, view: EncodedView, signals: tuple[Signal, ...]) -> _Gathering:
        """Start computing labels; see `raybrew.labels.source.Asker`."""
        handles = self._replicas[teacher]
        home = home_of(view.keys, len(handles))
        places = [np.flatnonzero(home == number) for number in range(len(handles))]
        asked = [(handles[n], place) for n, place in enumerate(places) if len(place)]
        references: list[Any] = [
            handle.ask.remote(view.take(place), signals) for handle, place in asked
        ]
        return _Gathering(teacher, [place for _, place in asked], references)

    def flush(self) -> None:
        """Have every replica write what it computed; return when it is on disk."""
        for teacher, handles in self._replicas.items():
            for reference in [handle.flush.remote() for handle in handles]:
                outcome(teacher, reference)
