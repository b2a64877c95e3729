"""Teachers whose classes have no names: an assumed order is reported, and tried on rows."""

import json
import logging
import re
from collections.abc import Collection
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset

import raybrew as rb
from raybrew.labels.remote import StoreSpec
from raybrew.models.pretrained import read_tokenizer
from raybrew.runs.precompute import Precompute
from raybrew.runs.resolve import resolve_job
from raybrew.runs.run import Run
from raybrew.sweeps import sweep
from raybrew.tasks import TASK_TYPES
from raybrew.tasks.task_data import read_task_data
from raybrew.training.build import check_class_orders
from raybrew.training.world import World
from tests.made import logits_of, make_job, make_nameless
from tests.tasks.made_models import make_rows, make_task_model
from tests.training.in_process import LocalPool

NAMES = ("cat", "ant", "bee")
"""Of the model's classes 0, 1, 2; sorted they are another order."""
SORTED = ("ant", "bee", "cat")
SHOWN = r'label_names: \["cat", "ant", "bee"\]'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Dataset]:
    return make_nameless(tmp_path_factory.mktemp("teacher"), NAMES)


def job_of(path: str, store: Path, train: Dataset, evaluation: Dataset | None, **changes: Any):
    task = rb.Task(name="t", train=train, eval=evaluation, max_length=32, **changes)
    teacher = rb.Teacher(name="a", task="t", model=path)
    return make_job({"a": path}, store, tasks=[task], teachers=[teacher])


def check(job: rb.DistillJob, folder: Path) -> LocalPool:
    preparation = resolve_job(job, folder)
    pool = LocalPool(preparation, StoreSpec.of(job.labels))
    try:
        check_class_orders(preparation, World(), pool)
    finally:
        pool.flush()
    return pool


@pytest.mark.parametrize("side", ["eval", "train"])
def test_an_order_that_fits_far_better_is_an_error_that_shows_it(side, made, tmp_path):
    path, rows = made
    evaluation = rows if side == "eval" else rows.select(range(20))
    job = job_of(path, tmp_path / "store", rows, evaluation)
    with pytest.raises(
        rb.ConfigError,
        match=rf"teachers\[a\]\.model: no names.*120 labels of tasks\[t\]\.{side}, and 100\.0%.*"
        rf"set tasks\[t\]\.{SHOWN}",
    ):
        check(job, tmp_path / "data")


def test_an_order_that_nothing_says_is_said_when_the_run_starts(made, tmp_path, caplog):
    path, rows = made
    with caplog.at_level(logging.WARNING):
        resolve_job(job_of(path, tmp_path / "store", rows, None), tmp_path / "data")
    assert (
        "teachers[a].model: no names say which of its classes is which; they are taken to be in "
        "the sorted order of the labels (ant, bee, cat); set tasks[t].label_names" in caplog.text
    )


@pytest.mark.parametrize("form", ["label_names", "ClassLabel", "integers", "texts of integers"])
def test_an_order_that_the_job_or_the_data_says_is_taken(form, made, tmp_path, caplog):
    path, rows = made
    labels = [NAMES.index(name) for name in rows["label"]]
    changes = {}
    if form == "label_names":
        changes = {"label_names": NAMES}
    elif form == "ClassLabel":
        rows = rows.remove_columns("label").add_column(
            "label", labels, feature=ClassLabel(names=list(NAMES))
        )
    else:
        values = labels if form == "integers" else list(map(str, labels))
        rows = rows.remove_columns("label").add_column("label", values)
    job = job_of(path, tmp_path / "store", rows, rows, **changes)
    with caplog.at_level(logging.WARNING):
        check(job, tmp_path / "data")
    assert "taken to be" not in caplog.text
    assert rb.evaluate(job, path)["t"]["accuracy"] == 1.0


def test_labels_that_the_store_has_are_compared_and_others_left_out(made, tmp_path):
    path, rows = made
    job = job_of(path, tmp_path / "store", rows, rows)
    preparation = resolve_job(job, tmp_path / "data")
    check_class_orders(preparation, World(), None)  # nothing is there
    pool = LocalPool(preparation, StoreSpec.of(job.labels))
    teacher = preparation.teachers[0]
    pool.replicas["a"].ask(preparation.tasks[0].train.views[teacher.view], teacher.signals)
    pool.flush()
    with pytest.raises(rb.ConfigError, match="no names say which"):
        check_class_orders(preparation, World(), None)


def test_top_k_logits_tell_as_well(made, tmp_path):
    path, rows = made
    job = job_of(path, tmp_path / "store", rows, rows)
    labels = rb.LabelConfig(store=str(tmp_path / "store"), top_k=2)
    with pytest.raises(rb.ConfigError, match=SHOWN):
        check(job.model_copy(update={"labels": labels}), tmp_path / "data")


def test_only_rows_that_are_routed_to_a_teacher_are_its_own(made, tmp_path):
    path, rows = made
    routed = rows.add_column("who", ["a", "b"] * 60)
    # What is the other's would be right in the sorted order.
    labels = [
        name if who == "a" else SORTED[NAMES.index(name)]
        for name, who in zip(rows["label"], routed["who"], strict=True)
    ]
    routed = routed.remove_columns("label").add_column("label", labels)
    job = job_of(path, tmp_path / "store", routed, None, teacher_column="who")
    teachers = [rb.Teacher(name=name, task="t", model=path) for name in "ab"]
    job = job.model_copy(
        update={
            "teachers": tuple(teachers),
            "distillation": rb.DistillationConfig(mixture="route"),
        }
    )
    with pytest.raises(rb.ConfigError, match=r"teachers\[a\].model.*60 labels of tasks\[t\].train"):
        check(job, tmp_path / "data")


@pytest.mark.parametrize("kind", ["token-classification", "multi-label"])
def test_tags_and_sets_are_tried_too(kind, tmp_path):
    path = make_task_model(tmp_path / "a", kind, 0)
    auto = TASK_TYPES[kind].model_class
    model = auto.from_pretrained(path)
    size = model.config.num_labels
    names = [f"n{(n + 1) % size}" for n in range(size)]  # sorted: the last one comes first
    column = "tags" if kind == "token-classification" else "label"
    rows = make_rows(kind, 120)
    tokenizer = read_tokenizer(path, "teacher")
    texts = [" ".join(words) for words in rows["words"]] if column == "tags" else rows["text"][:]
    each = [logits_of(model, tokenizer, [text])[0] for text in texts]
    flat = np.concatenate([one if one.ndim > 1 else one[None] for one in each])
    with torch.no_grad():
        model.classifier.bias -= torch.from_numpy(flat.mean(0))
    model.config.id2label = {n: f"LABEL_{n}" for n in range(size)}
    model.save_pretrained(path)
    each = [logits_of(model, tokenizer, [text])[0] for text in texts]
    if column == "tags":
        labels = [[names[n] for n in one.argmax(1)[1:-1]] for one in each]
    else:
        labels = [[names[n] for n in np.flatnonzero(one > 0)] for one in each]
    rows = rows.remove_columns(column).add_column(column, labels)
    job = job_of(path, tmp_path / "store", rows, rows, kind=kind)
    shown = re.escape(f"label_names: {json.dumps(list(names))}")
    with pytest.raises(rb.ConfigError, match=rf"teachers\[a\]\.model.*{shown}"):
        check(job, tmp_path / "data")
    with pytest.raises(rb.ConfigError, match=rf"{path}.*{shown}"):
        rb.evaluate(job, path)


def test_a_model_to_evaluate_is_tried_too(made, tmp_path, caplog):
    path, rows = made
    job = job_of(path, tmp_path / "store", rows, rows)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(rb.ConfigError, match=SHOWN),
    ):
        rb.evaluate(job, path)
    assert f"{path}: no names say which of its classes is which" in caplog.text


@pytest.mark.parametrize("routed", [False, True])
def test_a_column_of_logits_is_tried_when_it_is_read(routed, made):
    _, rows = made
    changes: dict[str, Any] = {}
    if routed:
        rows = rows.add_column("who", ["a"] * 120)
        changes = {"teacher_column": "who"}
    task = rb.Task(name="t", train=rows, **changes)
    teacher = rb.Teacher(name="a", task="t", logits="logits")
    with pytest.raises(
        rb.DataError,
        match=rf"teachers\[a\]\.logits.*tasks\[t\]\.train.*{SHOWN}",
    ):
        read_task_data(task, [teacher])
    named = task.model_copy(update={"label_names": NAMES})
    assert read_task_data(named, [teacher]).label_names == NAMES


def test_columns_of_words_are_tried_too():
    tags = [[NAMES[(row + word) % 3] for word in range(2)] for row in range(60)]
    logits = [[[5.0 * (name == n) for n in NAMES] for name in each] for each in tags]
    rows = Dataset.from_dict({"words": [["x", "y"]] * 60, "tags": tags, "logits": logits})
    task = rb.Task(name="t", kind="token-classification", train=rows)
    teacher = rb.Teacher(name="a", task="t", logits="logits")
    with pytest.raises(rb.DataError, match=rf"120 labels.*{SHOWN}"):
        read_task_data(task, [teacher])


def test_a_teacher_with_an_adaptor_of_the_users_is_not_tried(made, tmp_path):
    path, rows = made
    job = job_of(path, tmp_path / "store", rows, rows)
    assert resolve_job(job, tmp_path / "1").teachers[0].unnamed
    own = job.teachers[0].model_copy(
        update={"adaptor": "tests.training.user_adaptors:no_attention"}
    )
    prepared = resolve_job(job.model_copy(update={"teachers": (own,)}), tmp_path / "2")
    assert not prepared.teachers[0].unnamed


def test_label_names_in_another_order_than_the_teachers_are_an_error_too(made, tmp_path):
    path, rows = made
    job = job_of(path, tmp_path / "store", rows, rows, label_names=SORTED)
    with pytest.raises(rb.ConfigError, match=SHOWN):
        check(job, tmp_path / "data")
    with pytest.raises(rb.ConfigError, match=SHOWN):
        rb.evaluate(job, path)


def test_a_sweep_tries_the_order_once_it_has_the_labels(made, tmp_path, monkeypatch):
    path, rows = made
    job = job_of(path, tmp_path / "store", rows, rows)
    preparation = resolve_job(job, tmp_path / "data")
    local = LocalPool(preparation, StoreSpec.of(job.labels))
    view = preparation.tasks[0].split("eval").views[preparation.teachers[0].view]

    class Labelled(Precompute):
        def fill(self, pool: Any, sides: Collection[str]) -> None:
            local.replicas["a"].ask(view, preparation.teachers[0].signals)
            local.flush()

        @contextmanager
        def pool(self):
            yield None

    monkeypatch.setattr(sweep, "Precompute", Labelled)
    with pytest.raises(rb.ConfigError, match="no names say which"):
        sweep._compute_labels([preparation], Run(job, "tune", None, None))


def test_all_ranks_refuse_what_rank_0_finds(made, tmp_path, monkeypatch):
    path, rows = made
    job = job_of(path, tmp_path / "store", rows, rows)
    resolved = resolve_job(job, tmp_path / "data")
    monkeypatch.setattr(World, "all_gather", lambda self, value: ["found by rank 0", value])
    with pytest.raises(rb.ConfigError, match="found by rank 0"):
        check_class_orders(resolved, replace(World(), rank=1, size=2), None)
