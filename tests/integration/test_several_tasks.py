"""Several teachers, several tasks and matches in one run on a real Ray."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.train import RunConfig, ScalingConfig
from transformers import AutoModelForSequenceClassification

import raybrew as rb
from tests.made import STUDENT_CONFIG, make_data, make_job, make_model, make_yes_no_data
from tests.training import in_process

pytestmark = [pytest.mark.ray, pytest.mark.beside, pytest.mark.usefixtures("cluster")]

NUM_STEPS = 14
HIDDEN: dict[str, Any] = {"feature": "hidden", "proj": ["linear", 16, 32]}
MATCHES = [
    {"layer_T": 2, "layer_S": 1, "loss": "hidden_mse", "teacher": "a", **HIDDEN},
    {"layer_T": [1, 1], "layer_S": [1, 1], "feature": "hidden", "loss": "mmd", "teacher": "b"},
    {"layer_T": 2, "layer_S": 1, "loss": "cos", "teacher": "c", **HIDDEN},
    {
        "layer_T": 1,
        "layer_S": 0,
        "feature": "attention",
        "loss": "attention_mse",
        "teacher": "c",
    },
]
TERMS = {
    "sum": ("kd", "hard", "match/hidden_hidden_mse_1_2_a", "match/hidden_mmd_1-1_1-1_b", "loss"),
    "among": ("kd", "match/hidden_cos_1_2_c", "match/attention_attention_mse_0_1_c", "loss"),
}


def job_of(models: dict[str, str], store: Path, mixing: dict[str, Any]) -> rb.DistillJob:
    return make_job(
        {},
        store,
        tasks=[
            rb.Task(
                name="sum", train=make_data(60), eval=make_data(20, 1), max_length=32, weight=2.0
            ),
            rb.Task(
                name="among",
                train=make_yes_no_data(30),
                eval=make_yes_no_data(20, 1),
                text="word",
                text_pair="sentence",
                max_length=24,
                batch_size=7,
                distillation=rb.DistillationConfig(hard_label_weight=0.0, kd_loss="kl"),
            ),
        ],
        teachers=[
            rb.Teacher(name=name, task=task, model=models[name], resources={"CPU": 0.25})
            for name, task in (("a", "sum"), ("b", "sum"), ("c", "among"))
        ],
        distillation=rb.DistillationConfig(temperature=2, hard_label_weight=0.5, matches=MATCHES),
        mixing=rb.MixingConfig(**mixing),
        training=rb.TrainingConfig(
            num_steps=NUM_STEPS, batch_size=12, learning_rate=1e-3, num_threads=1
        ),
        student=rb.Student(
            config={
                **STUDENT_CONFIG,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            }
        ),
    )


def run(job: rb.DistillJob, folder: Path) -> rb.RunResult:
    return rb.distill(
        job,
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="run", storage_path=str(folder)),
    )


def values_of(result: rb.RunResult) -> list[dict[str, float]]:
    lines = Path(result.folder, "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    # Evaluations say how far training is, too; the losses of a step are what is meant.
    return [r for r in records if any(re.fullmatch(r"train/.+/loss", key) for key in r)]


def test_two_workers_are_one_with_teachers_tasks_and_matches_together(models, tmp_path):
    names = ("no", "yes")
    three = {**models, "c": make_model(tmp_path / "c", 2, labels=names)}
    # One store: the teachers' answers are the same to the last bit. One worker is this process.
    every = job_of(three, tmp_path / "store", {"sampling": "every"})
    two = run(every, tmp_path / "2")
    assert two.labels["forwards"] == two.labels["needed"]
    assert_same_losses(in_process.run(every, tmp_path / "1"), two, every_step=True)
    drawn = job_of(three, tmp_path / "store", {"tau": 0.5})
    pair = run(drawn, tmp_path / "4")
    assert pair.labels["forwards"] == 0
    assert_same_losses(in_process.run(drawn, tmp_path / "3"), pair, every_step=False)
    assert set(two.ensembles) == {"sum", "among"}
    assert {f"eval/{task}/accuracy" for task in TERMS} <= two.metrics.keys()
    for task, classes in (("sum", ("down", "level", "up")), ("among", names)):
        head = AutoModelForSequenceClassification.from_pretrained(Path(two.student, task))
        assert head.config.id2label == dict(enumerate(classes))
        assert head.config.num_hidden_layers == 1


def assert_same_losses(one: in_process.Recorder, two: rb.RunResult, *, every_step: bool) -> None:
    first, second = one.values, values_of(two)
    assert len(first) == len(second) == NUM_STEPS
    for task, terms in TERMS.items():
        for term in terms:
            name = f"train/{task}/{term}"
            steps = [(a[name], b[name]) for a, b in zip(first, second, strict=True) if name in a]
            assert len(steps) == NUM_STEPS if every_step else 2 < len(steps) < NUM_STEPS
            np.testing.assert_allclose(*zip(*steps, strict=True), atol=2e-5, rtol=0, err_msg=name)
