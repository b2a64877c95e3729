"""Which models fit a job: their tokens, the length of its texts, a first forward pass."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import raybrew as rb
from raybrew.models.pretrained import quiet_transformers
from raybrew.preparation import prepare
from tests.made import CLASSES, make_data, make_job, make_model, make_tokenizer
from tests.models.families import family_config


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
            prepare(job, tmp_path / "data")
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
    prepared = prepare(job, tmp_path / "data")
    assert max(prepared.tasks[0].train.student.lengths) == 92
    assert "max_length: 100 tokens are more than the 64 that the model of" in caplog.text


def test_reserved_positions_count_for_teachers_and_students(tmp_path):
    model = save(tmp_path / "mpnet", "MPNet", pad_token_id=0)
    prepare(job_of(model, tmp_path / "store", 62), tmp_path / "data")
    with pytest.raises(rb.ConfigError, match=r"expected at most 62, the positions of.*got 63"):
        prepare(job_of(model, tmp_path / "store", 63), tmp_path / "data")


def test_a_student_that_can_not_run_is_refused_with_the_job(tmp_path):
    model = save(tmp_path / "deberta", "DebertaV2")
    student = rb.Student(config={"hidden_size": 16, "pooler_hidden_size": 32})
    with pytest.raises(rb.ConfigError, match=r"student: .*whose first forward pass fails"):
        prepare(job_of(model, tmp_path / "store", 32, student=student), tmp_path / "data")
