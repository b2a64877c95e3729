"""`ray job submit` to a cluster of three nodes: each part of the run is where it belongs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from ray.job_submission import JobStatus
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.integration.lab_cluster import RAYS_OWN
from tests.integration.three_nodes import processes, three_nodes, until_none
from tests.made import CLASSES, make_data, make_model

pytestmark = [pytest.mark.ray, pytest.mark.beside, pytest.mark.long]

UNIQUE = 84 + 30  # rows that differ
SUBMITTED = Path(__file__).with_name("submitted")


def witnessed(folder: Path) -> dict[str, dict[str, int]]:
    """Return of teachers and student the examples of their forwards on each node."""
    seen: dict[str, dict[str, int]] = {}
    for file in folder.iterdir():
        who, _, node = file.name.partition("-")
        seen.setdefault(who, {})[node] = sum(int(line) for line in file.read_text().split())
    return seen


def assert_has_learnt(student: Path, accuracy: float) -> None:
    """Judge the student's folder with transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(student).eval()
    assert model.config.id2label == dict(enumerate(CLASSES))
    data = make_data(30, seed=1)
    batch = AutoTokenizer.from_pretrained(student)(
        data["text"][:], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        right = model(**batch).logits.argmax(-1) == torch.tensor(data["label"])
    assert right.double().mean().item() == pytest.approx(accuracy)


def test_a_submitted_job_runs_its_parts_on_their_nodes_and_leaves_nothing(tmp_path):
    make_data(90, twice=6).to_parquet(str(tmp_path / "train.parquet"))
    make_data(30, seed=1).to_parquet(str(tmp_path / "eval.parquet"))
    for seed, name in enumerate("ab"):
        make_model(tmp_path / name, seed)
    witnesses = tmp_path / "witnesses"
    with three_nodes(witnesses) as nodes:
        assert len({nodes.head, nodes.teachers, nodes.students}) == 3
        submission = nodes.submit(SUBMITTED, sys.executable, "driver.py", str(tmp_path))
        assert submission.returncode == 0, submission.stdout + submission.stderr
        assert "Job 'submitted' succeeded" in submission.stdout
        job = nodes.job()
        assert (job.status, job.driver_exit_code) == (JobStatus.SUCCEEDED, 0)
        assert job.driver_node_id == nodes.head
        assert until_none(lambda: set(nodes.actors()) - RAYS_OWN) == set()
        assert until_none(nodes.groups) == []
        assert processes(witnesses)
    assert until_none(lambda: processes(witnesses)) == {}
    seen = witnessed(witnesses)
    # Each label in one forward; each of six epochs read by the student, and its evaluations.
    assert seen["teacher"] == {nodes.teachers: 2 * UNIQUE}
    # The driver's node runs it once, on the rows that the report's page compares.
    assert seen["student"].keys() == {nodes.students, nodes.head}
    assert seen["student"][nodes.head] < 6 * 90
    assert seen["student"][nodes.students] >= 6 * 90 + 30
    run = tmp_path / "runs" / "submitted"
    report = json.loads((run / "report.json").read_text())
    assert report["labels"]["needed"] == report["labels"]["forwards"] == 2 * UNIQUE
    assert report["labels"]["in_store"] == report["labels"]["losses"] == 0
    assert report["recovered"] == []
    accuracy = report["metrics"]["eval/sum/accuracy"]
    assert f"student: {accuracy:.3f}, in {run / 'student'}\n" in submission.stdout
    assert_has_learnt(run / "student", accuracy)
