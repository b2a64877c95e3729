"""Names of a job stand beside names of raybrew's own, and mean nothing but themselves."""

import pytest
from datasets import Dataset

import raybrew as rb
from raybrew.runs.resolve import resolve_job
from tests.made import CLASSES, WORDS, make_data, make_model, make_tokenizer

OTHER_WORDS = WORDS[::-1]


def job_of(tmp_path, teacher: rb.Teacher, data: Dataset) -> rb.DistillJob:
    return rb.DistillJob(
        tasks=[rb.Task(name="x", train=data, max_length=32, label_names=CLASSES)],
        teachers=[teacher],
        student=rb.Student(model=make_model(tmp_path / "start", 1)),
        training=rb.TrainingConfig(num_steps=1),
        labels=rb.LabelConfig(store=str(tmp_path / "labels")),
    )


def read_by_student(job: rb.DistillJob, folder) -> list[list[int]]:
    view = resolve_job(job, folder).tasks[0].train.student
    return [view.input_ids[slice(*view.offsets[n : n + 2])].tolist() for n in range(len(view))]


def test_a_teacher_called_student_reads_its_tokens_and_the_student_its_own(tmp_path):
    data = make_data(6)
    teacher = rb.Teacher(
        name="student",
        task="x",
        model=make_model(tmp_path / "teacher", 0, words=OTHER_WORDS),
        inputs="own",
    )
    job = job_of(tmp_path, teacher, data)
    expected = make_tokenizer()(data["text"][:])["input_ids"]
    assert read_by_student(job, tmp_path / "data") == expected
    prepared = resolve_job(job, tmp_path / "data")
    theirs = prepared.tasks[0].train.views[prepared.teachers[0].view]
    others = make_tokenizer(OTHER_WORDS)(data["text"][:])["input_ids"]
    assert theirs.input_ids[: theirs.offsets[1]].tolist() == others[0]


def test_a_column_called_student_takes_nothing_from_the_student(tmp_path):
    data = make_data(6)
    logits = [[0.0, float(row), 1.0] for row in range(len(data))]
    data = data.add_column("logits", logits)
    job = job_of(tmp_path, rb.Teacher(name="student", task="x", logits="logits"), data)
    assert read_by_student(job, tmp_path / "data") == make_tokenizer()(data["text"][:])["input_ids"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "VOCAB.TXT"])
def test_a_task_of_several_is_not_called_as_a_file_beside_its_folder(name):
    tasks = [rb.Task(name=each, train="x.csv") for each in (name, "y")]
    with pytest.raises(ValueError, match=f"no task named like a file, got {name}"):
        rb.TrainJob(
            tasks=tasks, model=rb.Student(model="m"), training=rb.TrainingConfig(num_steps=1)
        )
    rb.TrainJob(
        tasks=tasks[:1], model=rb.Student(model="m"), training=rb.TrainingConfig(num_steps=1)
    )
