"""Logits that the data has already, in place of a teacher's model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raybrew as rb
from raybrew.config.job_file import dump_yaml, load_job
from raybrew.data.columns import column_fingerprint, read_supplied
from raybrew.data.payload import Signal
from raybrew.evaluation.stored_teachers import evaluate_teachers
from raybrew.labels.remote import StoreSpec
from raybrew.labels.store import LabelStore
from raybrew.runs.resolve import resolve_job
from raybrew.training.build import build_training
from raybrew.training.job import ResolvedJob
from raybrew.training.world import World
from tests.made import CLASSES, STUDENT_CONFIG, make_data, make_job, make_model
from tests.tasks.made_models import make_task_model
from tests.tasks.test_runs import job_of
from tests.training.in_process import LocalPool, Recorder, build

COLUMN = "logits"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    return {name: make_model(folder / name, seed) for seed, name in enumerate("ab")}


def run(job: rb.DistillJob, folder: Path) -> tuple[Recorder, ResolvedJob]:
    training, pool = build(job, folder)
    recorder = Recorder()
    training.run(recorder)
    # Evaluation rows are the driver's to ask for.
    preparation = resolve_job(job, folder)
    for each in preparation.teachers:
        evaluation = preparation.tasks[0].eval
        if each.model is not None and evaluation is not None:
            pool.replicas[each.name].fill_view(evaluation.views[each.view])
    pool.flush()
    return recorder, preparation


def answers(job: rb.DistillJob, folder: Path, side: str) -> list[Any]:
    """What a job's only teacher says of each row: a list of numbers, or a list of them a token."""
    preparation = resolve_job(job, folder)
    (teacher,) = preparation.teachers
    pool = LocalPool(preparation, StoreSpec.of(job.labels))
    view = preparation.tasks[0].split(side).views[teacher.view]
    payload = pool.ask(teacher.name, view, teacher.signals).result()["logits-float32"]
    if payload.offsets is None:
        return payload.values.tolist()
    width = preparation.tasks[0].num_labels
    bounds = zip(payload.offsets[:-1], payload.offsets[1:], strict=True)
    return [payload.values[start:stop].reshape(-1, width).tolist() for start, stop in bounds]


def of_column(job: rb.DistillJob, columns: dict[str, list[Any]], **changes: Any) -> rb.DistillJob:
    """The job with its first teacher's answers in its data, in place of the model."""
    task = job.tasks[0]
    rows = {side: getattr(task, side).add_column(COLUMN, columns[side]) for side in columns}
    first = rb.Teacher(name=job.teachers[0].name, task=task.name, logits=COLUMN)
    return job.model_copy(
        update={
            "tasks": (task.model_copy(update=rows),),
            "teachers": (first, *job.teachers[1:]),
            **changes,
        }
    )


def labels(store: Path, **changes: Any) -> rb.LabelConfig:
    return rb.LabelConfig(store=str(store), window=3, **changes)


STUDENT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **STUDENT_CONFIG}


@pytest.mark.parametrize(
    ("kept", "distillation"),
    [
        ({}, {"kd_loss": "ce"}),
        ({"top_k": 2}, {"kd_loss": "kl", "mixture": "sum_losses"}),
        ({"dtype": "float16"}, {}),
    ],
)
def test_a_column_teaches_what_the_model_that_made_it_teaches(models, tmp_path, kept, distillation):
    of_job = {"distillation": rb.DistillationConfig(temperature=4, **distillation)}
    student = rb.Student(config=STUDENT, tokenizer_from=models["b"])
    one = make_job({"a": models["a"]}, tmp_path / "1", student=student, **of_job)
    columns = {side: answers(one, tmp_path / "data", side) for side in ("train", "eval")}
    job = make_job(
        models, tmp_path / "1", student=student, labels=labels(tmp_path / "1", **kept), **of_job
    )
    expected, by_model = run(job, tmp_path / "r1")
    # What was kept of the model's labels is of no use to the column's.
    job = of_column(job, columns, labels=labels(tmp_path / "2", **kept))
    found, by_column = run(job, tmp_path / "r2")
    assert found.term("sum") == pytest.approx(expected.term("sum"), abs=1e-6)
    assert [teacher.model is None for teacher in by_column.teachers] == [True, False]
    ours, theirs = evaluate_teachers(by_column), evaluate_teachers(by_model)
    assert ours == theirs
    assert set(ours[0]) == {"a", "b"}


def test_words_have_a_list_each(tmp_path):
    kind = "token-classification"
    models = {name: make_task_model(tmp_path / name, kind, n) for n, name in enumerate("ab")}
    one = job_of(kind, {"a": models["a"]}, tmp_path / "1")
    job = job_of(kind, models, tmp_path / "1")
    # One token a word, between two special ones.
    columns = {
        side: [tokens[1:-1] for tokens in answers(one, tmp_path / "data", side)]
        for side in ("train", "eval")
    }
    expected, _ = run(job, tmp_path / "r1")
    changes = {"student": job.student.model_copy(update={"tokenizer_from": models["b"]})}
    found, preparation = run(
        of_column(job, columns, labels=labels(tmp_path / "2"), **changes), tmp_path / "r2"
    )
    assert found.term("t") == pytest.approx(expected.term("t"), abs=1e-6)
    assert preparation.tasks[0].train.counts["words"] == sum(map(len, columns["train"]))


def test_rows_that_read_the_same_may_have_different_logits(models, tmp_path):
    rows = make_data(20, twice=10)
    logits = np.random.default_rng(0).normal(size=(20, 3))
    logits[13] = logits[3]
    job = make_job({"b": models["b"]}, tmp_path / "store")
    task = job.tasks[0].model_copy(
        update={"train": rows.add_column(COLUMN, logits.tolist()), "eval": None}
    )
    job = job.model_copy(
        update={
            "tasks": (task,),
            "teachers": (rb.Teacher(name="c", task="sum", logits=COLUMN),),
            "student": rb.Student(config=STUDENT, tokenizer_from=models["b"]),
        }
    )
    preparation = resolve_job(job, tmp_path / "data")
    (teacher,) = preparation.teachers
    view = preparation.tasks[0].train.views[teacher.view]
    store = LabelStore(StoreSpec.of(job.labels)).signal(teacher.fingerprint, teacher.signals[0])
    assert len(store) == 19
    found, payload = store.read(view.keys)
    assert found.all()
    assert payload is not None
    np.testing.assert_array_equal(payload.values, logits.astype(np.float32))
    # Preparing again, as a resumed run does, writes nothing twice; other values are other labels.
    resolve_job(job, tmp_path / "data")
    assert len(LabelStore(StoreSpec.of(job.labels)).signal(teacher.fingerprint, Signal())) == 19
    other = task.model_copy(
        update={"train": rows.add_column(COLUMN, (logits + 1).tolist()), "eval": None}
    )
    job = job.model_copy(update={"tasks": (other,)})
    assert resolve_job(job, tmp_path / "other").teachers[0].fingerprint != teacher.fingerprint


GOOD = [[0.5, -1.0, 2]] * 6


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([0.5, 1.0], r"got \[0\.5, 1\.0\]"),
        (None, "got None"),
        ([0.5, float("nan"), 1.0], "nan"),
        ([0.5, 1e300, 1.0], r"1e\+300"),
    ],
)
def test_a_row_without_logits_is_named(models, tmp_path, bad, message):
    rows = make_data(6).add_column(COLUMN, [*GOOD[:4], bad, GOOD[0]])
    task = rb.Task(name="sum", train=rows, max_length=32)
    teachers = [rb.Teacher(name="c", task="sum", logits=COLUMN)]
    job = make_job(models, tmp_path, tasks=[task], teachers=teachers)
    with pytest.raises(
        rb.DataError,
        match=rf"tasks\[sum\]\.train: row 4: expected 3 finite numbers.*'logits'.*{message}",
    ):
        resolve_job(job, tmp_path / "data")


def test_values_of_other_forms_are_refused():
    def read(column, width=2, words=None):
        return read_supplied(column, width, words, name="c", what="rows")

    for column in (["ab"], [["1", "2"]], [[[1, 2]]], [[1, [2]]], [{"a": 1}], [[True, False]]):
        with pytest.raises(rb.DataError, match=r"row 0: expected 2 finite numbers"):
            read(column)
    with pytest.raises(rb.DataError, match=r"row 1: .*each of the 2 words.*got \[\[1, 2\]\]"):
        read([[[1, 2]], [[1, 2]]], words=[1, 2])
    # One class: a number will do; a sentence without words has nothing to say.
    np.testing.assert_array_equal(read([0.5, [2]], width=1).values, [[0.5], [2]])
    assert read([[], [[1, 2]]], words=[0, 1]).values.shape == (1, 2)
    # Two words of one class are not one word of two.
    keys = read([[[1], [2]]], width=1, words=[2]).keys, read([[[1, 2]]], words=[1]).keys
    assert not np.array_equal(*keys)
    assert column_fingerprint(read([[1, 2]])) != column_fingerprint(read([[1, 2]] * 2))


def test_mistakes(models, tmp_path):
    rows = make_data(6).add_column(COLUMN, GOOD)
    task = {"name": "sum", "train": rows, "max_length": 32}
    column = rb.Teacher(name="c", task="sum", logits=COLUMN)

    def refused(message: str, *, task=task, teachers=(column,), **changes):
        with pytest.raises(rb.RaybrewError, match=message):
            resolve_job(
                make_job(models, tmp_path, tasks=[rb.Task(**task)], teachers=teachers, **changes),
                tmp_path / "data",
            )

    refused(r"student\.tokenizer_from: expected a folder.*without a teacher that is a model")
    match = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse"}
    student = rb.Student(config=STUDENT, tokenizer_from=models["b"])
    refused(
        r"'hidden_mse'.*expected a teacher with layers, got 'c', whose logits are a column",
        student=student,
        distillation=rb.DistillationConfig(matches=[{**match, "proj": ["linear", 16, 32]}]),
    )
    refused(
        r"teachers\[c\]\.logits: expected no tasks\[sum\]\.augmentation",
        task={**task, "augmentation": {"operations": [{"name": "deleting", "p": 0.1}]}},
    )
    refused(
        r"teachers\[c\]\.logits: expected a teacher of a task type.*got one of 'causal-lm'",
        task={**task, "kind": "causal-lm"},
    )
    wrong = rb.Teacher(name="c", task="sum", logits="logit")
    refused(r"expected a column 'logit'.*did you mean 'logits'", teachers=(wrong,))
    refused(
        "row 0: expected logits that float16 can hold in 'logits', got larger ones",
        task={**task, "train": make_data(6).add_column(COLUMN, [[1e6, 0.0, 0.0]] * 6)},
        student=student,
        labels=labels(tmp_path / "half", dtype="float16"),
    )
    wrong_teachers: list[tuple[dict[str, Any], str]] = [
        ({}, "expected one of `model` and `logits`, got neither"),
        ({"model": "m", "logits": COLUMN}, "got both"),
        ({"logits": COLUMN, "replicas": 2, "dtype": "float16"}, "without dtype, replicas"),
    ]
    for given, message in wrong_teachers:
        with pytest.raises(ValueError, match=message):
            rb.Teacher(name="c", task="sum", **given)


def test_a_saved_job_reads_the_same(tmp_path, models):
    make_data(6).add_column(COLUMN, GOOD).to_parquet(str(tmp_path / "rows.parquet"))
    job = make_job(
        models,
        tmp_path,
        tasks=[
            rb.Task(name="sum", train=str(tmp_path / "rows.parquet"), label_names=CLASSES),
        ],
        teachers=[
            rb.Teacher(name="c", task="sum", logits=COLUMN, weight=0.5),
            rb.Teacher(name="a", task="sum", model=models["a"], placement="worker"),
        ],
    )
    (tmp_path / "job.yaml").write_text(dump_yaml(job))
    assert load_job(rb.DistillJob, tmp_path / "job.yaml").job == job


def test_labels_of_a_column_that_were_deleted_are_an_error(models, tmp_path):
    rows = make_data(20).add_column(COLUMN, np.zeros((20, 3)).tolist())
    task = rb.Task(name="sum", train=rows, max_length=32)
    teachers = [
        rb.Teacher(name="c", task="sum", logits=COLUMN),
        rb.Teacher(name="a", task="sum", model=models["a"]),
    ]
    job = make_job(models, tmp_path / "store", tasks=[task], teachers=teachers)
    preparation = resolve_job(job, tmp_path / "data")
    (shard,) = (tmp_path / "store").rglob("shard-*.arrow")
    shard.unlink()
    pool = LocalPool(preparation, StoreSpec.of(job.labels))
    training = build_training(preparation, World(), pool)
    with pytest.raises(rb.LabelError, match=r"'c'.*missing from the store"):
        training.run(Recorder())
