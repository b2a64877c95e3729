"""A teacher reads what it was trained to read, or the job is refused and says what to do."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

import raybrew as rb
from raybrew.data.payload import Signal
from raybrew.runs.resolve import resolve_job
from raybrew.teachers.teacher import ModelTeacher
from tests.made import make_model, make_tokenizer, make_yes_no_data

CLASSES = ("no", "yes")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    """A teacher of pairs to which segments matter."""
    folder = make_model(tmp_path_factory.mktemp("bert"), 0, CLASSES)
    model = BertForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        torch.nn.init.normal_(model.bert.embeddings.token_type_embeddings.weight, std=2.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def distilbert(tmp_path_factory) -> str:
    """A student of the same vocabulary whose tokenizer makes no segments."""
    folder = tmp_path_factory.mktemp("distilbert")
    tokenizer = make_tokenizer()
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=32, n_layers=1, n_heads=2, hidden_dim=64
    )
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
    tokenizer.save_pretrained(str(folder))
    return str(folder)


def job_of(tmp_path, teacher: str, student: str, pairs: bool = True, **changes) -> rb.DistillJob:
    task = rb.Task(
        name="x",
        train=make_yes_no_data(12),
        text="word",
        text_pair="sentence" if pairs else None,
        max_length=32,
        label_names=CLASSES,
    )
    return rb.DistillJob(
        tasks=[task],
        teachers=[rb.Teacher(name="t", task="x", model=teacher, **changes)],
        student=rb.Student(model=student),
        training=rb.TrainingConfig(num_steps=1),
        labels=rb.LabelConfig(store=str(tmp_path / "labels")),
    )


def answers_of(job: rb.DistillJob, folder) -> np.ndarray:
    """What the job's teacher says of its training rows."""
    prepared = resolve_job(job, folder)
    teacher = prepared.teachers[0]
    view = prepared.tasks[0].train.views[teacher.view]
    signal = Signal()
    return ModelTeacher(teacher).answer(view, (signal,))[signal.name].values


@torch.inference_mode()
def expected_of(folder: str, data: Dataset) -> np.ndarray:
    """What transformers gives for each pair alone."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = [
        model(**tokenizer(first, second, return_tensors="pt")).logits[0]
        for first, second in zip(data["word"][:], data["sentence"][:], strict=True)
    ]
    return torch.stack(found).numpy()


def test_a_teacher_of_pairs_reads_segments_that_the_student_has_not(tmp_path, bert, distilbert):
    with pytest.raises(
        rb.ConfigError, match=r"teachers\[t\]\.inputs: .*segments.*\[0, 1\] at the.*`inputs: own`"
    ):
        resolve_job(job_of(tmp_path, bert, distilbert), tmp_path / "data")
    job = job_of(tmp_path, bert, distilbert, inputs="own")
    found = answers_of(job, tmp_path / "data")
    np.testing.assert_allclose(found, expected_of(bert, job.tasks[0].train), rtol=1e-4, atol=1e-5)


def test_segments_matter_to_no_single_text_and_to_no_teacher_without_them(
    tmp_path, bert, distilbert
):
    resolve_job(job_of(tmp_path, bert, distilbert, pairs=False), tmp_path / "a")
    resolve_job(job_of(tmp_path, distilbert, bert), tmp_path / "b")
