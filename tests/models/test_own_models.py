"""A user's own class of models, as teacher and as student: prepared, taught, saved, evaluated."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import raybrew as rb
from raybrew.config.job_file import dump_yaml, load_job
from raybrew.runs.resolve import resolve_job
from raybrew.training.build import build_training
from raybrew.training.world import World
from tests import own_models
from tests.made import STUDENT_CONFIG, make_data, make_job, make_model, make_tokenizer
from tests.training.in_process import Recorder, build

OWN: dict[str, Any] = {
    "architecture": "tests.own_models:Bag",
    "adaptor": "tests.own_models:read_bag",
}
TRAINING = rb.TrainingConfig(num_steps=40, batch_size=16, learning_rate=0.1, num_threads=1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Bag that was trained by us, as `raybrew train-teacher` does."""
    folder = tmp_path_factory.mktemp("teacher")
    make_tokenizer().save_pretrained(str(folder / "words"))
    base = make_model(folder / "base", 0)
    job = rb.TrainJob(
        tasks=[rb.Task(name="sum", train=make_data(90), eval=make_data(30, 1), max_length=32)],
        model=rb.Student(config={"width": 16}, tokenizer_from=base, **OWN),
        training=TRAINING,
        tracking=rb.TrackingConfig(progress=False),
    )
    plan = resolve_job(job, folder / "data")
    training = build_training(plan, World(), None)
    last = training.run(Recorder())
    assert last["eval/sum/accuracy"] > 0.6
    (folder / "saved").mkdir()
    training.save(folder / "saved")
    student = folder / "saved" / "student"
    assert rb.evaluate(job, student)["sum"]["accuracy"] == last["eval/sum/accuracy"]
    return str(student)


def job_of(teacher: str, store: Path, **changes: Any) -> rb.DistillJob:
    sections = {
        "teachers": [rb.Teacher(name="a", task="sum", model=teacher, **OWN)],
        "student": rb.Student(config={"width": 8}, tokenizer_from=teacher, **OWN),
        "training": TRAINING,
    }
    return make_job({}, store, **{**sections, **changes})


def test_a_student_of_a_class_of_its_own_is_saved_loaded_and_resumed(teacher, tmp_path):
    job = job_of(teacher, tmp_path / "store")
    (tmp_path / "job.yaml").write_text(dump_yaml({**job.to_plain(), "tasks": []}))
    whole, pool = build(job, tmp_path / "1")
    recorder = Recorder()
    whole.run(recorder)
    pool.flush()
    losses = recorder.term("sum")
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    first, _ = build(job, tmp_path / "2")
    first.num_steps = 15
    first.run(Recorder())
    (tmp_path / "checkpoint").mkdir()
    first.save(tmp_path / "checkpoint")
    student = tmp_path / "checkpoint" / "student"
    loaded = own_models.Bag.from_pretrained(student)
    assert loaded.config.width == 8
    batch = AutoTokenizer.from_pretrained(student)(
        ["w1 w2", "w3"], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        assert torch.equal(loaded(**batch)["scores"], first.model(**batch)["scores"])
    second, _ = build(job, tmp_path / "3")
    second.resume(tmp_path / "checkpoint")
    second.run(Recorder())
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name
    # From a folder of its weights, with another head where the classes differ.
    again = job_of(teacher, tmp_path / "store", student=rb.Student(model=str(student), **OWN))
    third, _ = build(again, tmp_path / "4")
    assert torch.equal(third.model.state_dict()["words.weight"], loaded.words.weight)


def test_a_teacher_of_a_class_of_its_own_teaches_a_student_of_transformers(teacher, tmp_path):
    base = make_model(tmp_path / "base", 0)
    changes = {"student": rb.Student(config=STUDENT_CONFIG, tokenizer_from=base)}
    training, pool = build(job_of(teacher, tmp_path / "store", **changes), tmp_path / "data")
    view = training.tasks[0].train.student.take(np.arange(4))
    (signals,) = training.tasks[0].signals.values()
    answer = pool.ask("a", view, tuple(signals)).result()["logits-float32"].values
    bag = own_models.Bag.from_pretrained(teacher)
    for row in range(4):
        ids = torch.from_numpy(view.take(np.array([row])).input_ids.astype(np.int64))[None]
        with torch.inference_mode():
            scores = bag(ids, torch.ones_like(ids))["scores"][0]
        np.testing.assert_allclose(answer[row], scores.numpy(), atol=1e-6)


def test_other_code_has_other_labels(teacher, tmp_path):
    prints = [
        resolve_job(
            job_of(
                teacher,
                tmp_path / "store",
                teachers=[
                    rb.Teacher(
                        name="a",
                        task="sum",
                        model=teacher,
                        architecture=own,
                        adaptor=OWN["adaptor"],
                    )
                ],
            ),
            tmp_path / own.__name__,
        )
        .teachers[0]
        .fingerprint
        for own in (own_models.Bag, own_models.LoudBag)
    ]
    assert prints[0] != prints[1]


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("tests.own_models:Missing", r"student\.architecture 'tests.own_models:Missing' can't be"),
        ("tests.own_models:NoModel", r"student\.architecture: expected a subclass of transformers"),
    ],
)
def test_mistakes_are_refused_at_the_start(teacher, tmp_path, architecture, message):
    student = rb.Student(
        config={"width": 8},
        tokenizer_from=teacher,
        adaptor=OWN["adaptor"],
        architecture=architecture,
    )
    with pytest.raises(rb.ConfigError, match=message):
        resolve_job(job_of(teacher, tmp_path / "store", student=student), tmp_path / "data")


def test_keys_are_those_of_its_own_configuration(teacher, tmp_path):
    student = rb.Student(config={"widht": 8}, tokenizer_from=make_model(tmp_path / "b", 0), **OWN)
    with pytest.raises(rb.ConfigError, match=r"tests_bag configuration, got 'widht'; did you mean"):
        resolve_job(job_of(teacher, tmp_path / "store", student=student), tmp_path / "data")


def test_a_job_with_a_class_is_saved_by_its_import_path(teacher, tmp_path):
    own = {**OWN, "architecture": own_models.Bag}
    job = job_of(teacher, tmp_path, student=rb.Student(model=teacher, **own))
    make_data(6).to_parquet(str(tmp_path / "rows.parquet"))
    task = rb.Task(name="sum", train=str(tmp_path / "rows.parquet"))
    job = job.model_copy(update={"tasks": (task,)})
    (tmp_path / "job.yaml").write_text(dump_yaml(job))
    loaded = load_job(rb.DistillJob, tmp_path / "job.yaml").job
    assert loaded.student.architecture == "tests.own_models:Bag"
    resolve_job(loaded, tmp_path / "data")
