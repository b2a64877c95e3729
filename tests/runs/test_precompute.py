"""What a run decides about labels that are lost; no Ray: no teacher is started here."""

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import raybrew as rb
from raybrew.errors import Event, LabelsLost
from raybrew.evaluation.stored_teachers import evaluate_teachers
from raybrew.labels.store import SignalStore
from raybrew.runs.precompute import Precompute
from raybrew.runs.resolve import resolve_job
from raybrew.runs.run import Run
from raybrew.teachers.client import PrecomputeRequest
from raybrew.teachers.pool import TeacherPool
from tests.made import make_job, make_model
from tests.training.in_process import LocalPool, Recorder, build


@dataclass
class RecordingRun:
    """Stands in for a run: keeps what is recorded."""

    events: list[Event] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    bars: Any = field(
        default_factory=lambda: SimpleNamespace(start=lambda *_: None, advance=lambda *_: None)
    )

    def stage(self, name: str) -> Any:
        return nullcontext()

    def record(self, event: Event) -> None:
        self.events.append(event)

    def record_fault(self, fault: str, who: str, what: str) -> None:
        self.faults.append(what)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    return {name: make_model(tmp_path / name, seed) for seed, name in enumerate("ab")}


@pytest.fixture
def filled(tmp_path: Path) -> rb.DistillJob:
    """A job whose training labels are in the store, as one shard."""
    job = make_job({"a": make_model(tmp_path / "a", 0)}, tmp_path / "store")
    training, pool = build(job, tmp_path / "filling")
    training.run(Recorder())
    pool.flush()
    return job


def precompute_of(job: rb.DistillJob, folder: Path, run: Any) -> Precompute:
    return Precompute(resolve_job(job, folder), cast(Run, run))


def test_a_shard_that_any_process_sets_aside_is_recorded_once(filled, tmp_path):
    run = RecordingRun()
    precompute = precompute_of(filled, tmp_path / "data", run)
    (shard,) = (tmp_path / "store").rglob("shard-*.arrow")
    shard.rename(shard.with_name(f"{shard.name}.damaged"))
    for _ in range(2):
        precompute.start_again(LabelsLost("7 labels are missing"))
    assert [(event.fault, event.who) for event in run.events] == [
        ("label shard damaged", "teacher 'a'")
    ]
    assert shard.name in run.events[0].what
    # What was set aside before a run is no news.
    again = RecordingRun()
    precompute_of(filled, tmp_path / "again", again).start_again(LabelsLost("7 labels are missing"))
    assert again.events == []
    assert again.faults == ["7 labels are missing"]


def test_labels_that_are_lost_again_and_again_end_the_run(filled, tmp_path):
    run = RecordingRun()
    precompute = precompute_of(filled, tmp_path / "data", run)
    for _ in range(3):
        precompute.start_again(LabelsLost("7 labels are missing"))
    with pytest.raises(LabelsLost, match="7 labels"):
        precompute.start_again(LabelsLost("7 labels are missing"))


def test_teachers_whose_evaluation_labels_a_full_store_did_not_keep_are_not_judged(
    filled, tmp_path, caplog
):
    with pytest.raises(rb.LabelError, match="30 labels of evaluation rows are missing"):
        evaluate_teachers(resolve_job(filled, tmp_path / "data"))
    labels = filled.labels.model_copy(update={"on_full": "go_on"})
    going_on = filled.model_copy(update={"labels": labels})
    assert evaluate_teachers(resolve_job(going_on, tmp_path / "again")) == ({}, {})
    assert "teachers of task 'sum' are not evaluated" in caplog.text


class UpPool:
    """Stands in for running teachers."""

    def __init__(self, *names: str, busy: int = 0):
        self.teachers = set(names)
        self.released: list[str] = []
        self.filled: list[tuple[str, int]] = []
        self._busy = busy

    def fill(self, fillings: list[PrecomputeRequest]) -> set[str]:
        self.filled += [(each.teacher, len(each.rows)) for each in fillings]
        return set()

    def take_events(self) -> list[Event]:
        return []

    def metrics(self) -> dict[str, dict[str, float]]:
        return {}

    def release(self, teacher: str) -> bool:
        self._busy -= 1
        if self._busy >= 0:  # a rank waits for an answer
            return False
        self.released.append(teacher)
        self.teachers.discard(teacher)
        return True


def test_a_store_that_can_t_be_listed_keeps_its_teacher_and_lets_the_others_go(
    tmp_path, models, monkeypatch, caplog
):
    monkeypatch.setattr("raybrew.runs.precompute.POLL_S", 0.01)
    job = make_job(models, tmp_path / "store")
    precompute = precompute_of(job, tmp_path / "data", RecordingRun())
    pool = UpPool("a", "b")
    refused = precompute._started[0].fingerprint
    refresh = SignalStore.refresh

    def refresh_or_not(self: SignalStore, *, now: bool = False) -> None:
        if refused in self.folder:
            raise rb.LabelError("too many open files")
        refresh(self, now=now)

    replicas = LocalPool(resolve_job(job, tmp_path / "again"), job.labels.store).replicas
    monkeypatch.setattr(SignalStore, "refresh", refresh_or_not)
    with precompute.releasing(cast(TeacherPool, pool)):
        for split in ("train", "eval"):
            replicas["b"].fill_view(precompute.job.tasks[0].split(split).student)
        replicas["b"].flush()
        until = time.monotonic() + 30
        while not pool.released and time.monotonic() < until:
            time.sleep(0.01)
    assert pool.released == ["b"]
    assert "teacher 'a' stays until training ends: too many open files" in caplog.text


def test_a_teacher_leaves_with_its_last_training_label_and_the_others_stay(
    tmp_path, models, monkeypatch
):
    monkeypatch.setattr("raybrew.runs.precompute.POLL_S", 0.01)
    run = RecordingRun()
    job = make_job(models, tmp_path / "store")
    precompute = precompute_of(job, tmp_path / "data", run)
    assert [name for name, _ in precompute.replicas()] == ["a", "b"]
    pool = UpPool("a", "b", busy=2)
    replicas = LocalPool(resolve_job(job, tmp_path / "again"), job.labels.store).replicas
    view = precompute.job.tasks[0].train.student
    with precompute.releasing(cast(TeacherPool, pool)):
        replicas["a"].fill_view(view.take(np.arange(40)))
        replicas["a"].flush()
        time.sleep(0.1)
        assert pool.filled == []
        # Whoever computes the last of them, in this run or in another one.
        replicas["a"].fill_view(view)
        replicas["b"].fill_view(view.take(np.arange(40)))
        for each in replicas.values():
            each.flush()
        until = time.monotonic() + 30
        while not pool.released and time.monotonic() < until:
            time.sleep(0.01)
    assert pool.released == ["a"]
    # What no step asks for was computed before it left.
    assert set(pool.filled) == {("a", 30)}
    assert [(e.fault, e.who, e.is_fault) for e in run.events] == [
        ("teacher left", "teacher 'a'", False)
    ]
    # Only those of whom labels are missing are started next time.
    replicas["a"].fill_view(precompute.job.tasks[0].split("eval").student)
    replicas["a"].flush()
    later = precompute_of(job, tmp_path / "later", RecordingRun())
    assert [name for name, _ in later.replicas()] == ["b"]
