"""What a job leaves open is chosen, shown, saved, and taken over by a resumed run."""

from typing import Any

import pytest

import raybrew as rb
from raybrew.config.job_file import absolute_plain
from raybrew.runs.defaults import adopt_chosen, chosen_values, describe_chosen
from raybrew.runs.resolve import resolve_job
from tests.made import make_data, make_model


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("defaults") / "a", 0)


def job_of(teacher: str, store: Any, student: dict[str, Any], rows=None, **more: Any):
    rows = make_data(90) if rows is None else rows
    return rb.DistillJob(
        tasks=[rb.Task(name="t", train=rows, eval=make_data(9), max_length=16)],
        teachers=[rb.Teacher(name="a", task="t", model=teacher)],
        student=rb.Student(**student),
        labels=rb.LabelConfig(store=str(store)),
        **more,
    )


SCRATCH = {"config": {"hidden_size": 16, "num_attention_heads": 2}}


@pytest.mark.parametrize(
    ("student", "rate", "epochs"),
    [
        (SCRATCH, 1e-3, 40),  # 3 steps an epoch
        ({"config": {"num_hidden_layers": 1, "hidden_size": 512}}, 3e-4, 40),
        ({"layers_from": ("a", [0])}, 3e-4, 15),
        ({"model": "teacher"}, 1e-4, 10),
        ({"model": "teacher", "lora": {"rank": 2}}, 1e-3, 10),
    ],
)
def test_a_job_without_settings_gets_those_of_its_students_start(
    teacher, tmp_path, student, rate, epochs
):
    student = {key: teacher if value == "teacher" else value for key, value in student.items()}
    taken = resolve_job(job_of(teacher, tmp_path / "s", student), tmp_path / "d").config
    assert taken.training.learning_rate == rate
    assert taken.training.num_epochs == epochs
    assert isinstance(taken, rb.DistillJob)
    assert taken.distillation.hard_label_weight == 0.5


def test_what_a_job_says_stays(teacher, tmp_path):
    given = {
        "training": rb.TrainingConfig(num_steps=7, learning_rate=0.5),
        "distillation": rb.DistillationConfig(hard_label_weight=0.25),
    }
    job = job_of(teacher, tmp_path / "s", SCRATCH, **given)
    taken = resolve_job(job, tmp_path / "d").config
    assert isinstance(taken, rb.DistillJob)
    assert (taken.training, taken.distillation) == (given["training"], given["distillation"])
    assert describe_chosen(job, taken) == []


def test_rows_without_labels_are_taught_by_teachers_alone(teacher, tmp_path):
    rows = make_data(20).remove_columns("label").add_column("label", [-1] * 20)
    job = job_of(teacher, tmp_path / "s", SCRATCH, rows)
    task = job.tasks[0].model_copy(update={"label_names": ("down", "level", "up")})
    job = job.model_copy(update={"tasks": (task,)})
    resolved = resolve_job(job, tmp_path / "d")
    objective = resolved.tasks[0].objective
    assert objective is not None
    assert objective.hard_label_weight == 0
    assert any("no row has a label" in line for line in describe_chosen(job, resolved.config))
    asked = rb.DistillationConfig(hard_label_weight=0.5)
    with pytest.raises(rb.ConfigError, match="hard_label_weight needs labels"):
        resolve_job(job.model_copy(update={"distillation": asked}), tmp_path / "e")


def test_a_resumed_run_takes_what_was_chosen_before(teacher, tmp_path):
    job = job_of(teacher, tmp_path / "s", SCRATCH)
    plain = absolute_plain(job)
    saved = plain | chosen_values(resolve_job(job, tmp_path / "d").config, plain)
    # As if another version had chosen it.
    saved["training"]["learning_rate"] = 0.125
    resumed = adopt_chosen(job, saved)
    assert resumed.training.learning_rate == 0.125
    assert resumed.training.num_epochs == 40
    own = job.model_copy(update={"training": rb.TrainingConfig(num_steps=3, learning_rate=0.5)})
    assert adopt_chosen(own, saved).training == own.training
