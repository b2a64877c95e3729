"""Runs of fifty steps follow the published textbrewer's, loss for loss."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn

import raybrew as rb
from raybrew.models.students import MultiTaskStudent
from raybrew.training.loop import StudentTraining
from tests.made import STUDENT_CONFIG, make_data, make_job, make_model, make_yes_no_data
from tests.training import textbrewer_runs
from tests.training.in_process import Recorder, build

NUM_STEPS, LEARNING_RATE = 50, 1e-3
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TRAINING = rb.TrainingConfig(
    num_steps=NUM_STEPS,
    batch_size=16,
    learning_rate=LEARNING_RATE,
    lr_scheduler="constant",
    warmup_ratio=0,
    max_grad_norm=None,
    num_threads=1,
)
PROJ = ["linear", 16, 32, {"lr": 3e-3}]
MATCHES: list[dict[str, Any]] = [
    {
        "layer_T": 0,
        "layer_S": 0,
        "feature": "hidden",
        "loss": "hidden_mse",
        "weight": 1,
        "proj": PROJ,
    },
    {
        "layer_T": 2,
        "layer_S": 1,
        "feature": "hidden",
        "loss": "hidden_mse",
        "weight": 0.5,
        "proj": ["tanh", 16, 32],
    },
    {"layer_T": [2, 2], "layer_S": [1, 1], "feature": "hidden", "loss": "mmd", "weight": 1},
    {"layer_T": 1, "layer_S": 0, "feature": "attention", "loss": "attention_mse", "weight": 10},
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    return {name: make_model(folder / name, seed) for seed, name in enumerate("ab")}


def job_of(models: dict[str, str], store: Path, distillation: Any, **changes: Any) -> Any:
    return make_job(
        models,
        store,
        distillation=distillation,
        training=TRAINING,
        student=rb.Student(config={**STUDENT_CONFIG, **NO_DROPOUT}),
        **changes,
    )


def batches_of(training: StudentTraining) -> list[textbrewer_runs.Batch]:
    return [
        textbrewer_runs.batch_of(training.tasks[0].train, training.sequence.batch(step)[1])
        for step in range(NUM_STEPS)
    ]


def compare(ours: Sequence[float], theirs: Sequence[float]) -> None:
    assert len(ours) == len(theirs) == NUM_STEPS
    print(
        f"largest difference {np.abs(np.subtract(ours, theirs)).max():.2e}, {ours[0]:.5f} → "
        f"{ours[-1]:.5f}"
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert ours[0] - ours[-1] > 1e-3


@pytest.mark.parametrize(
    "distillation",
    [
        {"temperature": 8, "kd_loss_type": "ce", "hard_label_weight": 0.5},
        {"temperature": 2, "kd_loss_type": "mse", "hard_label_weight": 0.5},
        {
            "temperature": 4,
            "temperature_scheduler": ["flsw", 1, 2],
            "probability_shift": True,
            "hard_label_weight": 0.5,
        },
    ],
    ids=["ce", "mse", "flsw and shift"],
)
def test_several_teachers(models, tmp_path, distillation):
    training, _ = build(job_of(models, tmp_path / "store", distillation), tmp_path / "run")
    theirs = textbrewer_runs.run(
        "MultiTeacherDistiller",
        distillation,
        [textbrewer_runs.load_teacher(path) for path in models.values()],
        training.model,
        batches_of(training),
        tmp_path,
        num_steps=NUM_STEPS,
        learning_rate=LEARNING_RATE,
    )
    recorder = Recorder()
    training.run(recorder)
    compare(recorder.term("sum"), theirs)


def rows_of_one_length() -> Dataset:
    rows = make_data(90)
    return rows.map(lambda row: {"text": " ".join((row["text"].split() * 3)[:8])})


# Where its adaptors give a mask, textbrewer divides mmd by the padded length, which no job does.
@pytest.mark.parametrize("mask", [True, False], ids=["padded rows, masked", "one length, no mask"])
def test_one_teacher_with_matches_and_projections(models, tmp_path, mask):
    matches = [each for each in MATCHES if each["loss"] != "mmd" or not mask]
    distillation = {
        "temperature": 8,
        "hard_label_weight": 0.5,
        "intermediate_matches": matches,
    }
    rows = make_data(90) if mask else rows_of_one_length()
    job = job_of(
        {},
        tmp_path / "store",
        distillation,
        tasks=[rb.Task(name="sum", train=rows, max_length=32)],
        teachers=[rb.Teacher(name="a", task="sum", model=models["a"])],
    )
    training, _ = build(job, tmp_path / "run")
    projections = training.module.projections
    adaptor = textbrewer_runs.adaptor if mask else textbrewer_runs.adaptor_without_mask
    theirs = textbrewer_runs.run(
        "GeneralDistiller",
        distillation,
        textbrewer_runs.load_teacher(models["a"]),
        training.model,
        batches_of(training),
        tmp_path,
        num_steps=NUM_STEPS,
        learning_rate=LEARNING_RATE,
        adaptors=(adaptor, adaptor),
        projections=[projections["match_0"], projections["match_1"], *[None] * (len(matches) - 2)],
        output_hidden_states=True,
        output_attentions=True,
    )
    recorder = Recorder()
    training.run(recorder)
    compare(recorder.term("sum"), theirs)


class AllHeads(nn.Module):
    """A student of several tasks as textbrewer calls one: every batch runs through every head."""

    def __init__(self, student: MultiTaskStudent):
        super().__init__()
        self.student = student

    def forward(self, labels=None, **inputs):
        return [model(**inputs) for model in self.student.tasks]


def adaptor_of_head(task: int) -> Callable[..., Any]:
    return lambda batch, outputs: textbrewer_runs.adaptor(batch, outputs[task])


def two_tasks(models: dict[str, str], store: Path, distillation: Any) -> rb.DistillJob:
    pairs = {"text": "word", "text_pair": "sentence", "max_length": 24}
    return job_of(
        {},
        store,
        distillation,
        tasks=[
            rb.Task(name="sum", train=make_data(90), max_length=32),
            rb.Task(name="among", train=make_yes_no_data(64), **pairs),
        ],
        teachers=[
            rb.Teacher(name="a", task="sum", model=models["a"]),
            rb.Teacher(name="c", task="among", model=models["c"]),
        ],
        mixing=rb.MixingConfig(tau=0.5),
    )


@pytest.mark.parametrize("matches", [[], MATCHES[3:]], ids=["logits", "matches"])
def test_several_tasks_on_a_shared_trunk(models, tmp_path, monkeypatch, matches):
    models = {**models, "c": make_model(tmp_path / "c", 2, labels=("no", "yes"))}
    distillation = {
        "temperature": 4,
        "hard_label_weight": 0.5,
        "intermediate_matches": matches,
    }
    job = two_tasks(models, tmp_path / "store", distillation)
    training, _ = build(job, tmp_path / "run")
    assert isinstance(training.model, MultiTaskStudent)
    names = [task.name for task in job.tasks]
    steps = [training.sequence.batch(step) for step in range(NUM_STEPS)]
    drawn = [names[task] for task, _ in steps]
    assert 10 < drawn.count("among") < 40
    # textbrewer draws what we drew, and each task's batches come in our order.
    order = iter(drawn)
    monkeypatch.setattr(np.random, "choice", lambda names, p: next(order))
    theirs = textbrewer_runs.run(
        "MultiTaskDistiller",
        distillation,
        {t.task: textbrewer_runs.load_teacher(models[t.name]) for t in job.teachers},
        AllHeads(training.model),
        {
            name: [
                textbrewer_runs.batch_of(training.tasks[number].train, rows)
                for task, rows in steps
                if task == number
            ]
            for number, name in enumerate(names)
        },
        tmp_path,
        num_steps=NUM_STEPS,
        learning_rate=LEARNING_RATE,
        adaptors=(
            dict.fromkeys(names, textbrewer_runs.adaptor),
            {name: adaptor_of_head(number) for number, name in enumerate(names)},
        ),
        projections=[None] * len(matches),
        output_hidden_states=True,
        output_attentions=True,
    )
    recorder = Recorder()
    training.run(recorder)
    ours = [values[f"train/{n}/loss"] for n, values in zip(drawn, recorder.values, strict=True)]
    compare(ours, theirs)
