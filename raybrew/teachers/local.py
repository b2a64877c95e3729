"""Teachers inside of the process that asks: `placement: worker`. No Ray.

    one rank    what the store lacks is computed when it is asked for, on a thread beside
    more ranks  each computes its share of what the store lacks before the first step

On one GPU nothing has to be carried from process to process. Ranks don't ask each other: shares
that are disjoint keep a label from being computed twice.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from raybrew.data.encoding import EncodedView
from raybrew.data.keys import distinct_keys
from raybrew.labels.payload import Payload, Signal
from raybrew.labels.source import Asker, Pending
from raybrew.labels.spec import StoreSpec
from raybrew.teachers.replica import Replica
from raybrew.teachers.router import home_of
from raybrew.teachers.teacher import TeacherSpec

__all__ = ["Askers", "LocalAsker"]

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Waiting:
    future: Future

    def result(self) -> dict[str, Payload]:
        return self.future.result()


class LocalAsker:
    """Asks teachers of this process; an `Asker`.

    Args:
        teachers: each with the signals that it serves.
        store: of the labels.
        num_threads: PyTorch threads, those of the rank: teacher and student take turns on them.
        device: of the rank, whose GPU the teachers are on, too.
    """

    def __init__(
        self,
        teachers: Sequence[tuple[TeacherSpec, tuple[Signal, ...]]],
        store: StoreSpec | str,
        num_threads: int,
        device: torch.device = _CPU,
    ):
        self._replicas = {
            spec.name: Replica(replace(spec, num_threads=num_threads), signals, store)
            for spec, signals in teachers
        }
        # Which GPU is current is a matter of each thread.
        self._thread = ThreadPoolExecutor(1, "raybrew-teacher", _use, (device,))

    def ask(self, teacher: str, view: EncodedView, signals: tuple[Signal, ...]) -> _Waiting:
        """Start computing labels; see `raybrew.labels.source.Asker`."""
        replica = self._replicas[teacher]

        def answer() -> dict[str, Payload]:
            self._let_go(replica)
            answer = replica.ask(view, signals)
            if replica.flush_due():  # nobody looks after it between two questions
                replica.flush()
            return answer.payloads

        return _Waiting(self._thread.submit(answer))

    def fill_share(self, teacher: str, view: EncodedView, rank: int, world_size: int) -> None:
        """Compute this rank's share of the labels that the store lacks; they are on disk then.

        Args:
            teacher: whose labels.
            view: examples that labels are needed of, the same on all ranks.
            rank: this one.
            world_size: ranks that do so, each for its own share.
        """
        first, _ = distinct_keys(view.keys)
        mine = first[home_of(view.keys[first], world_size) == rank]
        replica = self._replicas[teacher]
        self._thread.submit(self._let_go, replica).result()
        self._thread.submit(replica.fill_view, view.take(mine)).result()
        self.flush()

    def _let_go(self, replica: Replica) -> None:
        # The same model under another name: on one thread, none of the two can wait for a label
        # that the other has claimed and not written.
        for other in self._replicas.values():
            if other is not replica and other.spec.fingerprint == replica.spec.fingerprint:
                other.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        for replica in self._replicas.values():
            self._thread.submit(replica.flush).result()

    def forwards(self) -> int:
        """Return how many examples were computed."""
        return sum(int(replica.figures()["examples"]) for replica in self._replicas.values())

    def unload(self) -> None:
        """Let the models go; one that is asked again is loaded again."""
        for replica in self._replicas.values():
            self._thread.submit(replica.unload).result()

    def close(self) -> None:
        """End the thread and let the models go."""
        self._thread.shutdown(cancel_futures=True)
        self._replicas.clear()


def _use(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)


class Askers:
    """Several askers as one: each knows its own teachers."""

    def __init__(self, by_teacher: Mapping[str, Asker]):
        self._by_teacher = by_teacher

    def ask(self, teacher: str, view: EncodedView, signals: tuple[Signal, ...]) -> Pending:
        """Ask the teacher's own asker."""
        return self._by_teacher[teacher].ask(teacher, view, signals)

    def flush(self) -> None:
        """Have all of them flush."""
        for asker in {id(asker): asker for asker in self._by_teacher.values()}.values():
            asker.flush()
