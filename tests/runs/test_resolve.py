import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import raybrew as rb
from raybrew.labels.remote import StoreSpec
from raybrew.models.pretrained import quiet_transformers
from raybrew.runs.resolve import resolve_job
from raybrew.training.build import build_training
from raybrew.training.world import World
from tests.made import CLASSES, STUDENT_CONFIG, make_data, make_job, make_model, make_tokenizer
from tests.models.families import family_config
from tests.training.in_process import LocalPool, Recorder

# What ranks get holds wherever they are: Ray Train gives them a working directory.

TRAINING = rb.TrainingConfig(num_steps=2, batch_size=8, learning_rate=1e-3, num_threads=1)
STUDENTS: dict[str, dict[str, Any]] = {
    "of the first teacher's configuration": {"config": STUDENT_CONFIG},
    "with a tokenizer's folder": {"config": STUDENT_CONFIG, "tokenizer_from": "models/a"},
    "with a teacher's tokenizer": {"config": STUDENT_CONFIG, "tokenizer_from": "a"},
    "from a folder": {"model": "models/a"},
    "from layers of a folder": {"layers_from": ("models/a", [0])},
}


def test_a_resolved_job_travels_without_rows_and_finds_them_in_its_files(tmp_path):
    job = make_job({"a": make_model(tmp_path / "a", 0)}, tmp_path / "store")
    resolved = resolve_job(job, tmp_path / "data")
    keys = resolved.tasks[0].train.student.keys
    pickled = pickle.dumps(resolved)
    assert job.tasks[0].train["text"][0].encode() not in pickled
    assert keys[0].tobytes() not in pickled
    again = pickle.loads(pickled)
    assert again == resolved
    assert (again.tasks[0].train.student.keys == keys).all()


@pytest.mark.parametrize("student", STUDENTS.values(), ids=STUDENTS)
def test_relative_paths_are_those_of_the_driver(student, tmp_path, monkeypatch):
    make_model(tmp_path / "models" / "a", 0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model = rb.Student(**student)
    job = make_job({"a": "models/a"}, Path("store"), student=model, training=TRAINING)
    resolved = resolve_job(job, tmp_path / "data")
    pool = LocalPool(resolved, StoreSpec.of(job.labels))
    monkeypatch.chdir("elsewhere")
    build_training(resolved, World(), pool).run(Recorder())


def test_the_same_without_teachers(tmp_path, monkeypatch):
    make_model(tmp_path / "models" / "a", 0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    tasks = make_job({"a": "models/a"}, Path("store")).tasks
    job = rb.TrainJob(tasks=tasks, model=rb.Student(model="models/a"), training=TRAINING)
    resolved = resolve_job(job, tmp_path / "data")
    monkeypatch.chdir("elsewhere")
    build_training(resolved, World(), None).run(Recorder())


# Which models fit a job: their tokens, the length of its texts, a first forward pass.


def save(folder: Path, family: str, **changes) -> str:
    config = family_config(family, **changes)
    config.id2label = dict(enumerate(CLASSES))
    config.label2id = {name: number for number, name in enumerate(CLASSES)}
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(str(folder))
    return str(folder)


def job_of(model: str, store: Path, max_length: int, **changes) -> rb.DistillJob:
    task = rb.Task(name="sum", train=make_data(20), max_length=max_length)
    return make_job({"a": model}, store, tasks=[task], **changes)


def test_a_teacher_with_tokens_beyond_its_embedding_is_refused(tmp_path):
    teacher, student = make_model(tmp_path / "teacher", 0), make_model(tmp_path / "student", 1)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.add_tokens(["<user>", "<url>"])
    tokenizer.save_pretrained(teacher)
    message = r"teachers\[a\].model: expected a model that knows all 47 tokens of its tokenizer"
    for inputs in ("own", "shared"):
        job = make_job(
            {},
            tmp_path / "store",
            teachers=[rb.Teacher(name="a", task="sum", model=teacher, inputs=inputs)],
            student=rb.Student(model=student),
        )
        with pytest.raises(rb.ConfigError, match=message):
            resolve_job(job, tmp_path / "data")
    job = make_job({"a": student}, tmp_path / "store")
    with pytest.raises(rb.ConfigError, match="model: expected a model that knows all 47 tokens"):
        rb.evaluate(job, teacher)


def test_relative_positions_read_more_tokens_than_a_model_was_made_for(tmp_path, caplog):
    model = save(tmp_path / "deberta", "DebertaV2")
    texts = {"text": ["w1 " * 90, "w2"], "label": ["up", "down"]}
    task = rb.Task(
        name="sum", train=Dataset.from_dict(texts), label_names=list(CLASSES), max_length=100
    )
    job = make_job({"a": model}, tmp_path / "store", tasks=[task])
    prepared = resolve_job(job, tmp_path / "data")
    assert max(prepared.tasks[0].train.student.lengths) == 92
    assert "max_length: 100 tokens are more than the 64 that the model of" in caplog.text


def test_reserved_positions_count_for_teachers_and_students(tmp_path):
    model = save(tmp_path / "mpnet", "MPNet", pad_token_id=0)
    resolve_job(job_of(model, tmp_path / "store", 62), tmp_path / "data")
    with pytest.raises(rb.ConfigError, match=r"expected at most 62, the positions of.*got 63"):
        resolve_job(job_of(model, tmp_path / "store", 63), tmp_path / "data")


def test_a_student_that_can_not_run_is_refused_with_the_job(tmp_path):
    model = save(tmp_path / "deberta", "DebertaV2")
    student = rb.Student(config={"hidden_size": 16, "pooler_hidden_size": 32})
    with pytest.raises(rb.ConfigError, match=r"student: .*whose first forward pass fails"):
        resolve_job(job_of(model, tmp_path / "store", 32, student=student), tmp_path / "data")
