"""What a run decides about labels that are gone; no Ray: no teacher is started here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

import raybrew as rb
from raybrew.errors import LabelsLost
from raybrew.events import Event
from raybrew.judging import judge_teachers
from raybrew.labelling import Labelling
from raybrew.preparation import prepare
from raybrew.run import Run
from tests.made import make_job, make_model
from tests.student.in_process import Recorder, build


@dataclass
class Told:
    """Stands in for a run: keeps what it is told."""

    events: list[Event] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def survived(self, event: Event) -> None:
        self.events.append(event)

    def went_wrong(self, fault: str, who: str, what: str) -> None:
        self.wrong.append(what)


@pytest.fixture
def filled(tmp_path: Path) -> rb.DistillJob:
    """A job whose training labels are in the store, as one shard."""
    job = make_job({"a": make_model(tmp_path / "a", 0)}, tmp_path / "store")
    training, pool = build(job, tmp_path / "filling")
    training.run(Recorder())
    pool.flush()
    return job


def labelling_of(job: rb.DistillJob, folder: Path, told: Any) -> Labelling:
    return Labelling(job, prepare(job, folder), cast(Run, told))


def test_a_shard_that_anybody_sets_aside_is_said_once(filled, tmp_path):
    told = Told()
    labelling = labelling_of(filled, tmp_path / "data", told)
    (shard,) = (tmp_path / "store").rglob("shard-*.arrow")
    shard.rename(shard.with_name(f"{shard.name}.damaged"))
    for _ in range(2):
        labelling.lost(LabelsLost("7 labels are missing"))
    assert [(event.fault, event.who) for event in told.events] == [
        ("label shard damaged", "teacher 'a'")
    ]
    assert shard.name in told.events[0].what
    # What was set aside before a run is no news.
    again = Told()
    labelling_of(filled, tmp_path / "again", again).lost(LabelsLost("7 labels are missing"))
    assert again.events == []
    assert again.wrong == ["7 labels are missing"]


def test_labels_that_are_lost_again_and_again_end_the_run(filled, tmp_path):
    told = Told()
    labelling = labelling_of(filled, tmp_path / "data", told)
    for _ in range(3):
        labelling.lost(LabelsLost("7 labels are missing"))
    with pytest.raises(LabelsLost, match="7 labels"):
        labelling.lost(LabelsLost("7 labels are missing"))


def test_teachers_whose_evaluation_labels_a_full_store_did_not_keep_are_not_judged(
    filled, tmp_path, caplog
):
    preparation = prepare(filled, tmp_path / "data")
    with pytest.raises(rb.LabelError, match="30 labels of evaluation rows are missing"):
        judge_teachers(filled, preparation)
    labels = filled.labels.model_copy(update={"on_full": "go_on"})
    going_on = filled.model_copy(update={"labels": labels})
    assert judge_teachers(going_on, preparation) == ({}, {})
    assert "teachers of task 'sum' are not judged" in caplog.text
