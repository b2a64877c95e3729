"""A whole distillation in this process: no Ray, the teachers answer on the spot."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import raybrew as rb
from raybrew.data.encoding import EncodedView
from raybrew.data.payload import Payload, Signal
from raybrew.errors import Event
from raybrew.labels.remote import StoreSpec
from raybrew.runs.resolve import resolve_job
from raybrew.teachers.replica import Replica
from raybrew.training.build import build_training
from raybrew.training.callbacks import Hooks
from raybrew.training.job import ResolvedJob
from raybrew.training.loop import StudentTraining
from raybrew.training.world import World


@dataclass
class Answered:
    answer: dict[str, Payload]

    def result(self) -> dict[str, Payload]:
        return self.answer


class LocalPool:
    """Replicas in this process, loaded when they are asked for the first time."""

    def __init__(self, preparation: ResolvedJob, store: StoreSpec | str, device: str = "cpu"):
        self.replicas = {
            t.name: Replica(replace(t, device=device), t.signals, store)
            for t in preparation.teachers
            if t.model is not None
        }

    def ask(self, teacher: str, view: EncodedView, signals: tuple[Signal, ...]) -> Answered:
        return Answered(self.replicas[teacher].ask(view, signals).payloads)

    def flush(self) -> None:
        for replica in self.replicas.values():
            replica.flush()


@dataclass
class Recorder(Hooks):
    """Hooks that keep the losses of every step."""

    values: list[dict[str, float]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def losses(self, step: int, values: dict[str, float]) -> None:
        self.values.append(values)

    def recovered(self, event: Event) -> None:
        self.events.append(event)

    def term(self, task: str, term: str = "loss") -> list[float]:
        name = f"train/{task}/{term}"
        return [values[name] for values in self.values if name in values]


def build(job: rb.DistillJob, folder: Path) -> tuple[StudentTraining, LocalPool]:
    """Prepare a job and put its training together on one rank."""
    preparation = resolve_job(job, folder)
    pool = LocalPool(preparation, StoreSpec.of(job.labels))
    return build_training(preparation, World(), pool), pool


def run(job: rb.DistillJob, folder: Path) -> Recorder:
    training, _ = build(job, folder)
    recorder = Recorder()
    training.run(recorder)
    return recorder


def losses_of(recorder: Recorder, task: str, terms: Sequence[str]) -> dict[str, list[float]]:
    return {term: recorder.term(task, term) for term in terms}
