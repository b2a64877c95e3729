"""Teachers in the process that asks: `placement: worker`. No Ray.

    one rank    what the store lacks is computed when it is asked for, on a thread of its own
    more ranks  each computes its share of what the store lacks before the first step

On one GPU nothing has to be carried from process to process. Ranks don't ask each other: shares
that are disjoint keep a label from being computed twice.

A model is unloaded once all labels that its rank expects of it are in the store. Where memory is
too small for a forward, smaller ones follow; after an error of the device the process can compute
nothing, and the rank ends with it.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from raybrew.data.encoding import EncodedView, distinct_keys
from raybrew.data.payload import Payload, Signal
from raybrew.errors import Event, TeacherError
from raybrew.labels.remote import StoreSpec
from raybrew.labels.source import Pending, TeacherClient
from raybrew.models.devices import free_cached_memory
from raybrew.teachers.failure import ReplicaFailure
from raybrew.teachers.replica import Answer, Replica
from raybrew.teachers.router import home_of
from raybrew.teachers.teacher import ResolvedTeacher

_CPU = torch.device("cpu")


class LocalClient:
    """Asks teachers of this process; a `TeacherClient`.

    Args:
        teachers: each with the signals that it serves.
        store: of the labels.
        num_threads: PyTorch threads, those of the rank: teacher and student take turns on them.
        device: of the rank, whose GPU the teachers are on, too.
        on_event: called with what happens to a teacher.
    """

    def __init__(
        self,
        teachers: Sequence[tuple[ResolvedTeacher, tuple[Signal, ...]]],
        store: StoreSpec | str,
        num_threads: int,
        device: torch.device = _CPU,
        on_event: Callable[[Event], None] = lambda event: None,
    ):
        self._replicas = {
            spec.name: Replica(
                replace(spec, num_threads=num_threads, device=str(device)), signals, store
            )
            for spec, signals in teachers
        }
        self._missing: dict[str, np.ndarray] = {}
        self._on_event = on_event
        # Which GPU is current is a matter of each thread.
        self._thread = ThreadPoolExecutor(1, "raybrew-teacher", _use, (device,))

    def ask(self, teacher: str, view: EncodedView, signals: tuple[Signal, ...]) -> Future:
        """Start computing labels; see `raybrew.labels.source.TeacherClient`."""
        replica = self._replicas[teacher]

        def answer() -> dict[str, Payload]:
            self._flush_others(replica)
            answer = self._compute(teacher, lambda: replica.ask(view, signals))
            if replica.flush_due():  # nothing checks it between two questions
                replica.flush()
            return answer.payloads

        return self._thread.submit(answer)

    def fill_share(self, teacher: str, view: EncodedView, rank: int, world_size: int) -> None:
        """Compute this rank's share of the labels that the store lacks; they are on disk then.

        Args:
            teacher: whose labels.
            view: examples that labels are needed of, the same on all ranks.
            rank: this one.
            world_size: ranks that do so, each for its own share.
        """
        first, _ = distinct_keys(view.keys)
        share = view.take(first[home_of(view.keys[first], world_size) == rank])
        replica = self._replicas[teacher]
        self._thread.submit(self._flush_others, replica).result()
        self._thread.submit(self._compute, teacher, lambda: replica.fill_view(share)).result()
        self.flush()

    def _compute(self, teacher: str, compute: Callable[[], Answer]) -> Answer:
        """Compute, with smaller forwards where memory is too small.

        Raises:
            TeacherError: memory is too small for one example.
            Exception: that of the device, after which the process has to end.
        """
        replica = self._replicas[teacher]
        while True:
            try:
                return compute()
            except ReplicaFailure as failure:
                if failure.fault == "device":
                    # As it was raised: an error of ours would end the run, and not this rank alone.
                    raise (failure.__cause__ or failure) from None
                if failure.smaller is None:
                    raise TeacherError(
                        f"teacher {teacher!r}: {failure}; a single example needs more memory than "
                        "the student's worker has: lower the task's max_length or training's "
                        "batch_size, take another dtype, or host it in the pool"
                    ) from failure
                replica.recover(failure.smaller)
                what = f"{failure}; from now on at most {failure.smaller} tokens a forward"
            # Not while the failure is handled, which holds on to what the forward had in memory.
            free_cached_memory()
            self._on_event(Event("teacher out of memory", f"teacher {teacher!r}", what))

    def _flush_others(self, replica: Replica) -> None:
        # The same model under another name: on one thread, neither of the two can wait for a label
        # that the other has a lease of and has not written.
        for other in self._replicas.values():
            if other is not replica and other.spec.fingerprint == replica.spec.fingerprint:
                other.flush()

    def expect(self, teacher: str, view: EncodedView) -> None:
        """Keep a teacher loaded until labels of all these examples are in the store."""
        keys = view.keys[distinct_keys(view.keys)[0]]
        known = self._thread.submit(self._replicas[teacher].knows, keys).result()
        if not known.all():
            self._missing[teacher] = keys[~known]

    def flush(self) -> None:
        """Write what is not on disk yet, and unload models whose labels are all in the store."""
        for teacher, replica in self._replicas.items():
            self._thread.submit(replica.flush).result()
            if teacher not in self._missing:
                continue
            keys = self._missing[teacher]
            known = self._thread.submit(replica.knows, keys).result()
            self._missing[teacher] = keys[~known]
            if known.all():
                del self._missing[teacher]
                self._thread.submit(replica.unload).result()
                what = "every label is in the store; its model was unloaded"
                self._on_event(Event("teacher left", f"teacher {teacher!r}", what, is_fault=False))

    def forwards(self) -> int:
        """Return how many examples were computed."""
        return sum(int(replica.metrics()["examples"]) for replica in self._replicas.values())

    def unload(self) -> None:
        """Unload models of which no label is expected; one that is asked is loaded again."""
        for teacher, replica in self._replicas.items():
            if teacher not in self._missing:
                self._thread.submit(replica.unload).result()

    def close(self) -> None:
        """End the thread and unload the models."""
        self._thread.shutdown(cancel_futures=True)
        self._replicas.clear()


def _use(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)


class CombinedClient:
    """Several clients as one: each has its own teachers."""

    def __init__(self, by_teacher: Mapping[str, TeacherClient]):
        self._by_teacher = by_teacher

    def ask(self, teacher: str, view: EncodedView, signals: tuple[Signal, ...]) -> Pending:
        """Ask the teacher's own client."""
        return self._by_teacher[teacher].ask(teacher, view, signals)

    def flush(self) -> None:
        """Have all of them flush."""
        for client in {id(client): client for client in self._by_teacher.values()}.values():
            client.flush()
