"""Impossible jobs of any task type are refused before any model is loaded."""

import typing
from pathlib import Path

import pytest
from datasets import Dataset

import raybrew as rb
from raybrew.config.task import TaskTypeName
from raybrew.runs.resolve import resolve_job
from raybrew.tasks import TASK_TYPES
from tests.made import CLASSES, make_data, make_job, make_model
from tests.tasks.made_models import TAGS, make_task_model
from tests.tasks.test_runs import job_of


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("teachers")
    kinds = ("multi-label", "token-classification", "question-answering", "causal-lm")
    made = {kind: {"a": make_task_model(folder / kind, kind, 0)} for kind in kinds}
    for kind in kinds:
        # Nothing of this may look at weights: there are none that could be read.
        (folder / kind / "model.safetensors").write_bytes(b"no weights")
    return made


def test_every_kind_has_its_name_and_its_adaptor():
    assert set(typing.get_args(TaskTypeName)) == set(TASK_TYPES)


@pytest.mark.parametrize(
    ("kind", "sections", "message"),
    [
        (
            "multi-label",
            {"distillation": rb.DistillationConfig(kd_loss="kl")},
            r"suits multi-label.*kd_loss 'kl' \(leave it out for bce\)",
        ),
        (
            "multi-label",
            {"distillation": rb.DistillationConfig(mixture="ca_mkd", probability_shift=True)},
            r"mixture 'ca_mkd' \(take mean_logits or sum_losses\); probability_shift",
        ),
        (
            "multi-label",
            {"distillation": rb.DistillationConfig(mixture="mean_probs")},
            r"mixture: expected mean_logits or sum_losses with kd_loss 'bce'",
        ),
        (
            "question-answering",
            {"labels": rb.LabelConfig(top_k=3)},
            r"labels.top_k: the classes of question-answering are the tokens of each text",
        ),
    ],
)
def test_objectives_that_dont_suit_the_kind(models, tmp_path, kind, sections, message):
    with pytest.raises(rb.ConfigError, match=message):
        resolve_job(job_of(kind, models[kind], tmp_path / "store", **sections), tmp_path / "data")


def test_a_language_model_is_taught_in_its_own_tokens(models, tmp_path):
    own = rb.Teacher(name="a", task="t", model=models["causal-lm"]["a"], inputs="own")
    job = job_of("causal-lm", {}, tmp_path, teachers=[own])
    with pytest.raises(rb.ConfigError, match=r"teachers\[a\].inputs: expected `shared` for causal"):
        resolve_job(job, tmp_path / "data")


def test_columns_that_a_kind_has_for_its_own():
    task = rb.Task(name="t", kind="question-answering", train="x.json")
    assert (task.text, task.text_pair, task.label) == ("question", "context", "answers")
    task = rb.Task(name="t", kind="token-classification", train="x", text="tokens")
    assert (task.text, task.label) == ("tokens", "tags")
    with pytest.raises(rb.ConfigError, match="expected `text_pair`, the column of the passages"):
        rb.Task(name="t", kind="question-answering", train="x", text_pair=None)


def test_classes_have_different_names():
    with pytest.raises(rb.ConfigError, match="expected different `label_names`, got a twice"):
        rb.Task(name="t", train="x", label_names=["a", "a", "b"])


@pytest.mark.parametrize(
    "kind", ["sequence-classification", "multi-label", "regression", "question-answering"]
)
def test_training_on_nothing_is_refused(kind, tmp_path):
    pairs = kind == "question-answering"
    data = Dataset.from_dict({"text": ["w1"] * 2, "text_pair": ["w2"] * 2, "label": [None] * 2})
    task = rb.Task(
        name="t",
        kind=kind,
        train=data,
        text="text",
        text_pair="text_pair" if pairs else None,
        label="label",
        label_names=None if pairs or kind == "regression" else ["a", "b"],
    )
    job = rb.TrainJob(
        tasks=(task,), model=rb.Student(model="m"), training=rb.TrainingConfig(num_steps=1)
    )
    with pytest.raises(
        rb.DataError, match=r"tasks\[t\]\.train: expected labels to learn from in 'label', got none"
    ):
        resolve_job(job, tmp_path / "data")


def test_a_passage_longer_than_its_room_says_which_row(models, tmp_path):
    job = job_of("question-answering", models["question-answering"], tmp_path)
    short = job.tasks[0].model_copy(update={"max_length": 14, "stride": 9})
    with pytest.raises(rb.DataError, match=r"tasks\[t\]\.train: row 0: expected a question that"):
        resolve_job(job.model_copy(update={"tasks": (short,)}), tmp_path / "data")


def test_a_teacher_of_other_classes_shows_both(tmp_path):
    other = make_model(tmp_path / "a", 0, labels=("low", "middle", "high"))
    job = make_job({"a": other}, tmp_path / "store")
    with pytest.raises(
        rb.ConfigError,
        match=r"teachers\[a\].model: expected the task's labels \(down, level, up\).*got low, mid",
    ):
        resolve_job(job, tmp_path / "data")


def test_names_that_say_nothing_leave_the_order_as_it_is(tmp_path):
    nameless = make_model(tmp_path / "a", 0, labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    job = make_job({"a": nameless}, tmp_path)
    assert resolve_job(job, tmp_path / "data").teachers[0].order is None
    numbered = rb.Task(
        name="sum", train=make_data(20).cast_column("label", _int64()), max_length=32
    )
    named = make_model(tmp_path / "b", 0)
    job = make_job({"a": named}, tmp_path, tasks=[numbered])
    assert resolve_job(job, tmp_path / "data2").teachers[0].order is None


def _int64():
    from datasets import Value

    return Value("int64")


def test_upper_case_is_no_other_class(tmp_path):
    loud = make_model(tmp_path / "a", 0, labels=tuple(reversed([c.upper() for c in CLASSES])))
    job = make_job({"a": loud}, tmp_path)
    assert resolve_job(job, tmp_path / "data").teachers[0].order == (2, 1, 0)


def test_missing_columns_are_said(models, tmp_path: Path):
    job = job_of("token-classification", models["token-classification"], tmp_path)
    task = job.tasks[0].model_copy(update={"text": "tokens"})
    with pytest.raises(rb.DataError, match=r"tasks\[t\].train: expected a column 'tokens'"):
        resolve_job(job.model_copy(update={"tasks": (task,)}), tmp_path / "data")
    assert job.tasks[0].label_names == TAGS
