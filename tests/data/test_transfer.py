"""Transfer rows: further rows of a task that only its teachers label."""

import numpy as np
import pytest
from datasets import Dataset

import raybrew as rb
from raybrew.config.job_file import load_job, validate
from raybrew.errors import DataError
from raybrew.runs.resolve import resolve_job
from raybrew.tasks.task_data import read_task_data
from tests.made import make_data, make_job, make_model
from tests.tasks.made_models import make_rows, make_task_model
from tests.tasks.test_runs import job_of
from tests.training.in_process import Recorder, build

LABELLED_KINDS = ("multi-label", "regression", "token-classification", "question-answering")


def task_with(job: rb.DistillJob, **changes) -> rb.DistillJob:
    task = rb.Task(**{**dict(job.tasks[0]), **changes})
    return job.model_copy(update={"tasks": (task,)})


@pytest.mark.parametrize("kind", LABELLED_KINDS)
def test_rows_of_other_sets_are_learnt_from_without_their_labels(kind, tmp_path):
    models = {n: make_task_model(tmp_path / n, kind, seed) for seed, n in enumerate("ab")}
    job = job_of(kind, models, tmp_path / "store")
    plain = resolve_job(job, tmp_path / "plain").tasks[0].train
    others = (make_rows(kind, 10, 7), make_rows(kind, 5, 8))
    split = resolve_job(task_with(job, transfer=others), tmp_path / "data").tasks[0].train
    assert len(split) > len(plain)
    known, new = np.arange(len(plain)), np.arange(len(plain), len(split))
    np.testing.assert_array_equal(split.labels_of(known), plain.labels)
    labels = split.labels_of(new)
    # Nothing of what the other sets' labels say; -100 is a token that isn't the task's.
    assert np.isnan(labels).all() if kind == "regression" else (labels < 0).all()
    np.testing.assert_array_equal(split.student.keys[known], plain.student.keys)


def test_teachers_label_transfer_rows_and_the_student_learns_from_them(tmp_path):
    models = {name: make_model(tmp_path / name, seed) for seed, name in enumerate("ab")}
    job = make_job(models, tmp_path / "store")
    other = make_data(30, seed=5).remove_columns("label")
    training, pool = build(task_with(job, transfer=(other,)), tmp_path / "data")
    assert training.num_steps == 2 * -(-120 // 16)  # 90 rows and 30 more, two epochs
    seen = {int(row) for n in range(training.num_steps) for row in training.sequence.batch(n)[1]}
    assert seen == set(range(120))
    training.run(Recorder())
    assert pool.replicas["a"].metrics()["examples"] == 84 + 30


def test_columns_are_kept_by_name(capfd):
    train = make_data(6)
    texts = ["w1", "w2", "w3"]
    other = Dataset.from_dict({"source": ["web"] * 3, "text": texts, "label": list("abc")})
    task = rb.Task(name="t", train=train, transfer=[other])
    table = read_task_data(task)
    assert list(table.train.texts) == [*train["text"], *texts]
    assert table.train.labels.tolist() == [*train["label"], -1, -1, -1]
    assert table.label_names == ("down", "level", "up")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"txt": ["a"]},
            r"tasks\[t\]\.transfer\[0\]: expected a column 'text'.*did you mean 'txt'",
        ),
        ({"text": [["a", "b"]]}, r"tasks\[t\]\.transfer\[0\]: expected columns as those of the"),
        ({"text": []}, r"tasks\[t\]\.transfer\[0\]: expected rows, got an empty"),
    ],
)
def test_a_set_that_doesnt_fit(other, message):
    task = rb.Task(name="t", train=make_data(6), transfer=[Dataset.from_dict(other)])
    with pytest.raises(DataError, match=message):
        read_task_data(task)


def test_a_column_that_the_training_rows_lack_is_named():
    task = rb.Task(name="t", train=make_data(6), transfer=[make_data(3)], text="txet")
    with pytest.raises(DataError, match=r"tasks\[t\]\.train: expected a column 'txet'"):
        read_task_data(task)


def test_a_file_names_them_by_paths_beside_it(tmp_path):
    make_data(5).to_parquet(str(tmp_path / "more.parquet"))
    text = "tasks: [{name: t, train: a/b, transfer: [more.parquet, org/set:zh@dev]}]\n"
    text += "teachers: [{name: a, task: t, model: org/a}]\nstudent: {preset: T3}\n"
    (tmp_path / "job.yaml").write_text(text + "training: {num_steps: 1}\n")
    job = load_job(rb.DistillJob, tmp_path / "job.yaml").job
    assert job.tasks[0].transfer == (str(tmp_path / "more.parquet"), "org/set:zh@dev")


def test_they_are_of_no_use_without_teachers():
    tasks = [{"name": "t", "train": "a/b", "transfer": ["c/d"]}]
    values = {"model": {"model": "org/a"}, "training": {"num_steps": 1}, "tasks": tasks}
    with pytest.raises(rb.ConfigError, match="without `transfer`, whose rows only teachers label"):
        validate(rb.TrainJob, values)
