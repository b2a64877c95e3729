"""When the student is evaluated, and what a user adds to training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import raybrew as rb
from raybrew.runs.resolve import resolve_job
from raybrew.training.loop import evaluation_due
from tests.made import STUDENT_CONFIG, make_job, make_model
from tests.training.in_process import Recorder, build

NO_DROPOUT = {**STUDENT_CONFIG, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"a": make_model(tmp_path_factory.mktemp("teachers") / "a", 0)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def job(models, store, **training) -> rb.DistillJob:
    settings = {"num_steps": 6, "batch_size": 16, "learning_rate": 1e-3}
    return make_job(
        models,
        store,
        student=rb.Student(config=NO_DROPOUT),
        training=rb.TrainingConfig(**{**settings, **training}),
    )


def due(num_steps: int = 20, **cadence: Any) -> list[int]:
    config = rb.TrainingConfig(num_steps=num_steps, **cadence)
    steps = range(1, num_steps + 1)
    return [step for step in steps if evaluation_due(config, step, 7, num_steps)]


def test_cadences_in_epochs_of_seven_steps():
    assert due() == [7, 14, 20]
    assert due(evaluate_every=6) == [6, 12, 18, 20]
    # ⌈7/3⌉, ⌈14/3⌉ and 7 of each epoch.
    assert due(evaluations_per_epoch=3) == [3, 5, 7, 10, 12, 14, 17, 19, 20]
    assert due(evaluations_per_epoch=100) == list(range(1, 21))
    assert due(evaluate_every_epochs=2) == [14, 20]
    with pytest.raises(rb.ConfigError, match="expected one of `evaluate_every`"):
        rb.TrainingConfig(num_steps=3, evaluate_every=2, evaluations_per_epoch=1)


CALLS: list[tuple[int, bool, bool]] = []


def note(model: nn.Module, step: int) -> None:
    torch.rand(3)  # a callback may draw numbers: the run doesn't change
    CALLS.append((step, model.training, hasattr(model, "classifier")))


def test_callbacks_are_called_at_each_evaluation_and_change_nothing(models, store, tmp_path):
    CALLS.clear()
    plain, _ = build(job(models, store, evaluate_every=2), tmp_path / "1")
    plain.run(Recorder())
    path = "tests.training.test_callbacks:note"
    noted, _ = build(job(models, store, evaluate_every=2, callbacks=[note, path]), tmp_path / "2")
    noted.run(Recorder())
    assert [(step, False, True) for step in (2, 2, 4, 4, 6, 6)] == CALLS
    assert noted.model.training
    for one, other in zip(plain.model.parameters(), noted.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def mask_all(batch):
    return {**batch, "input_ids": torch.full_like(batch["input_ids"], 4)}


def drop_a_row(batch):
    return {name: each[:-1] for name, each in batch.items()}


def relabel(batch):
    return {**batch, "labels": torch.full_like(batch["labels"], -1)}


def test_postprocessors_change_what_the_student_reads(models, store, tmp_path):
    changed, _ = build(
        job(models, store, batch_postprocessors=["tests.training.test_callbacks:mask_all"]),
        tmp_path / "1",
    )
    embedding = changed.model.get_parameter("bert.embeddings.word_embeddings.weight")
    before = embedding.detach().clone()
    changed.run(Recorder())
    moved = (embedding.detach() - before).abs().amax(dim=1)
    # AdamW's weight decay moves the rows that were never read by lr · 0.01 of their size.
    assert moved[4] > 100 * moved[5:].max()


@pytest.mark.parametrize(
    ("function", "message"),
    [(drop_a_row, r"drop_a_row: expected.*16 rows"), (relabel, r"relabel: expected.*label")],
)
def test_postprocessors_that_lose_rows_or_labels_are_refused(
    models, store, tmp_path, function, message
):
    training, _ = build(job(models, store, batch_postprocessors=[function]), tmp_path)
    with pytest.raises(rb.ConfigError, match=message):
        training.run(Recorder())


@pytest.mark.parametrize("field", ["callbacks", "batch_postprocessors"])
def test_paths_that_lead_nowhere_are_found_before_anything_is_read(models, store, tmp_path, field):
    with pytest.raises(rb.ConfigError, match=rf"training\.{field}.*nowhere"):
        resolve_job(job(models, store, **{field: ["tests.made:nowhere"]}), tmp_path)
