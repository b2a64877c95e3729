"""One student of three task types at once: classes of texts, of words, and of pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import raybrew as rb
from raybrew.models.students import MultiTaskStudent, task_folders
from tests.made import STUDENT_CONFIG, make_data, make_job, make_model, make_yes_no_data
from tests.tasks.made_models import TAGS, make_rows, make_task_model
from tests.training.in_process import Recorder, build

HEADS: dict[str, Any] = {
    "sum": AutoModelForSequenceClassification,
    "tags": AutoModelForTokenClassification,
    "among": AutoModelForSequenceClassification,
}


def job_of(folder: Path, num_steps: int) -> rb.DistillJob:
    pairs = {"text": "word", "text_pair": "sentence", "max_length": 24}
    words: dict[str, Any] = {"kind": "token-classification", "label_names": TAGS, "max_length": 24}
    no_yes = make_model(folder / "c", 2, labels=("no", "yes"))
    return make_job(
        {},
        folder / "store",
        tasks=[
            rb.Task(name="sum", train=make_data(60), eval=make_data(20, 1), max_length=32),
            rb.Task(
                name="tags",
                train=make_rows("token-classification", 40),
                eval=make_rows("token-classification", 20, 1),
                **words,
            ),
            rb.Task(
                name="among", train=make_yes_no_data(30), eval=make_yes_no_data(20, 1), **pairs
            ),
        ],
        teachers=[
            rb.Teacher(name="a", task="sum", model=make_model(folder / "a", 0)),
            rb.Teacher(name="b", task="sum", model=make_model(folder / "b", 1)),
            rb.Teacher(
                name="t",
                task="tags",
                model=make_task_model(folder / "t", "token-classification", 3),
            ),
            rb.Teacher(name="c", task="among", model=no_yes),
        ],
        student=rb.Student(config=STUDENT_CONFIG),
        mixing=rb.MixingConfig(sampling="every"),
        training=rb.TrainingConfig(num_steps=num_steps, batch_size=12, learning_rate=1e-2),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("run")
    job = job_of(folder, num_steps=40)
    training, pool = build(job, folder / "data")
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    recorder = Recorder()
    last = training.run(recorder)
    pool.flush()
    (folder / "checkpoint").mkdir()
    training.save(folder / "checkpoint")
    return job, training, recorder, last, before, folder / "checkpoint"


def test_every_head_and_the_trunk_learn(run):
    job, training, recorder, _, before, _ = run
    model = training.model
    assert isinstance(model, MultiTaskStudent)
    trunks = {id(model.model_of(number).base_model) for number in range(3)}
    assert trunks == {id(model.trunk)}
    moved = {n for n, value in model.state_dict().items() if not torch.equal(before[n], value)}
    for part in ("trunk.encoder.", *(f"tasks.{number}.classifier." for number in range(3))):
        assert any(name.startswith(part) for name in moved), part
    for task in job.tasks:
        for term in ("kd", "hard"):
            losses = recorder.term(task.name, term)
            assert len(losses) == 40
            assert np.isfinite(losses).all()


def test_each_folder_is_a_model_of_its_kind(run):
    _, training, _, last, _, checkpoint = run
    folders = task_folders(checkpoint / "student")
    assert list(folders) == list(HEADS)
    training.model.eval()
    for number, (name, folder) in enumerate(folders.items()):
        head, info = HEADS[name].from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        batch = AutoTokenizer.from_pretrained(folder)(["w1 w2 w3", "w4"], padding=True)
        inputs = {key: torch.tensor(value) for key, value in batch.items()}
        with torch.inference_mode():
            ours = training.model.model_of(number)(**inputs).logits
            torch.testing.assert_close(head.eval()(**inputs).logits, ours)
    assert {f"eval/{name}/accuracy" for name in HEADS} <= last.keys()
    assert "eval/tags/f1" in last


def test_the_saved_student_is_judged_as_the_one_in_memory(run):
    job, _, _, last, _, checkpoint = run
    found = rb.evaluate(job, checkpoint / "student")
    for task, metrics in found.items():
        for name, value in metrics.items():
            assert value == pytest.approx(last[f"eval/{task}/{name}"]), (task, name)


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(run, tmp_path):
    job, training, *_ = run
    first, pool = build(job, tmp_path / "1")
    first.num_steps = 11
    first.run(Recorder())
    pool.flush()
    (tmp_path / "checkpoint").mkdir()
    first.save(tmp_path / "checkpoint")
    second, _ = build(job, tmp_path / "2")
    second.resume(tmp_path / "checkpoint")
    second.run(Recorder())
    whole = training.model.state_dict()
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, whole[name]), name
