"""The experiment with three tasks: its jobs, its parts, its table."""

import pytest

import raybrew as rb
from experiments.three_tasks.__main__ import HERE, METRICS, TEACHERS, only, tables, without_teachers
from raybrew.config.job_file import load_job

ROWS = {
    "one student, teachers": [(0.8, 0.9, 0.4), (0.8, 0.9, 0.7)],
    "one student, labels only": [(0.7, 0.8, 0.3), (0.7, 0.8, 0.3)],
    "a student each, teachers": [(0.8, 0.8, 0.5), (0.8, 0.8, 0.5)],
    "a student each, labels only": [(0.6, 0.8, 0.4), (0.6, 0.8, 0.4)],
}


def test_each_part_is_the_same_job_with_one_task():
    job = load_job(rb.DistillJob, HERE / "distill.yaml").job
    assert [task.name for task in job.tasks] == list(METRICS)
    # At least one task with two teachers; batches of each as many as in the whole.
    assert [len(job.teachers_of(task)) for task in METRICS] == [1, 2, 1]
    for task in METRICS:
        part = only(job, task)
        assert [each.name for each in part.tasks] == [task]
        names = {teacher.name for teacher in part.teachers}
        assert names == {teacher.name for teacher in job.teachers_of(task)}
        alone = without_teachers(part)
        assert (alone.training, alone.model) == (part.training, job.student)
        assert alone.tasks[0].transfer == ()
    # Together the parts have the steps of the whole, each by its share.
    whole, shares = job.training.num_steps, job.mixing.probabilities
    assert whole is not None
    assert shares is not None
    steps = {task: only(job, task).training.num_steps for task in METRICS}
    assert steps == {task: shares[task] * whole for task in METRICS}
    assert sum(shares.values()) == 1
    for teacher in TEACHERS.values():
        assert load_job(rb.TrainJob, teacher).job.tasks[0].name in METRICS


def test_the_table_says_what_teachers_are_worth_and_whether_seeds_say_so():
    rows = {
        who: [dict(zip(METRICS, each, strict=True)) for each in found]
        for who, found in ROWS.items()
    }
    text = tables(rows, {"mr teacher mr": 0.85}, {"in all": 3.0})
    # (0.8 + 0.9 + 0.4) / 3 and (0.8 + 0.9 + 0.7) / 3: 0.75 on average, 0.0707 by two seeds.
    assert "0.750 ± 0.071" in text
    assert "0.700 0.800" in text
    assert "0.550 ± 0.212" in text
    one, each, both = (line for line in text.splitlines() if " minus " in line)
    # 0.75 - 0.6, beyond the 10 points between the two seeds.
    assert "+15.0 points" in one
    assert ", more than the spread over seeds (10.0 points" in one
    assert "+10.0 points" in each
    assert "+5.0 points" in both
    assert ", not more than" in both


@pytest.mark.parametrize("seed", [0, 1])
def test_seeds_change_nothing_else(seed):
    job = load_job(rb.DistillJob, HERE / "distill.yaml", [f"training.seed={seed}"]).job
    base = load_job(rb.DistillJob, HERE / "distill.yaml").job
    assert job.training == base.training.model_copy(update={"seed": seed})
    assert job.distillation == base.distillation
