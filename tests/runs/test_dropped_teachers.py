"""`on_loss: drop` where no other teacher can stand in: refused before anything is loaded."""

from pathlib import Path

import pytest

import raybrew as rb
from raybrew.runs.resolve import resolve_job
from tests.made import make_job, make_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make_model(folder / name, seed) for seed, name in enumerate("ab")}


def job_of(models: dict[str, str], folder: Path, **distillation) -> rb.DistillJob:
    teachers = [
        rb.Teacher(name="a", task="sum", model=models["a"], on_loss="drop"),
        rb.Teacher(name="b", task="sum", model=models["b"]),
    ]
    return make_job(
        models,
        folder / "store",
        teachers=teachers,
        distillation=rb.DistillationConfig(**distillation),
    )


@pytest.mark.parametrize("teacher", ["a", "b"])
def test_a_teacher_whose_layers_are_matched_cannot_be_dropped(models, tmp_path, teacher):
    match = {"layer_T": 0, "layer_S": 0, "feature": "attention", "loss": "attention_mse"}
    job = job_of(models, tmp_path, matches=[{**match, "teacher": teacher}])
    if teacher == "b":
        assert resolve_job(job, tmp_path / "data").teachers[0].config.on_loss == "drop"
        return
    with pytest.raises(rb.ConfigError, match=r"teachers\[a\]\.on_loss.*a match compares"):
        resolve_job(job, tmp_path / "data")


def test_a_teacher_that_rows_are_routed_to_cannot_be_dropped(models, tmp_path):
    job = job_of(models, tmp_path, mixture="route")
    plain = job.tasks[0]
    routed = plain.train.map(lambda row, n: {**row, "who": "ab"[n % 2]}, with_indices=True)  # type: ignore[union-attr]
    task = rb.Task(name="sum", train=routed, max_length=32, teacher_column="who")
    with pytest.raises(rb.ConfigError, match=r"teachers\[a\]\.on_loss.*routes rows to it"):
        resolve_job(job.model_copy(update={"tasks": (task,)}), tmp_path / "data")
