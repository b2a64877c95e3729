"""Weights and their schedules in whole runs, from the first step on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import raybrew as rb
from tests.made import STUDENT_CONFIG, make_job, make_model
from tests.training.in_process import Recorder, build

NUM_STEPS = 6
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("teachers") / "a", 0)


class AfterOne(Recorder):
    """Keeps the weights as the first step leaves them."""

    def __init__(self, training: Any):
        super().__init__()
        self._training = training
        self.weights: dict[str, Tensor] = {}

    def progress(self, step: int) -> None:
        if step == 1:
            self.weights = {k: v.clone() for k, v in self._training.model.state_dict().items()}


def run(model: str, tmp_path: Path, **distillation: Any) -> AfterOne:
    job = make_job(
        {"a": model},
        tmp_path / "store",
        student=rb.Student(config={**STUDENT_CONFIG, **NO_DROPOUT}),
        distillation=rb.DistillationConfig(temperature=2, **distillation),
        training=rb.TrainingConfig(
            num_steps=NUM_STEPS, batch_size=16, learning_rate=1e-3, num_threads=1, warmup_ratio=0
        ),
    )
    training, _ = build(job, tmp_path / "run")
    recorder = AfterOne(training)
    training.run(recorder)
    return recorder


def test_schedules_multiply_the_weights_of_every_step(model, tmp_path):
    recorder = run(
        model,
        tmp_path,
        kd_loss_weight=3,
        kd_loss_weight_scheduler="linear_decay",
        hard_label_weight=0.5,
        hard_label_weight_scheduler="annealed",
        hard_label_weight_scheduler_options={"start": 0, "end": 1, "until": 0.5},
    )
    kd, hard, loss = (np.array(recorder.term("sum", name)) for name in ("kd", "hard", "loss"))
    progress = np.arange(NUM_STEPS) / NUM_STEPS
    expected = 3 * (1 - progress) * kd + 0.5 * np.minimum(2 * progress, 1) * hard
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_a_schedule_is_at_work_in_the_first_step(model, tmp_path):
    """TextBrewer's takes effect after it."""
    growing = run(
        model,
        tmp_path / "1",
        hard_label_weight=1,
        hard_label_weight_scheduler="linear_growth",
    )
    without = run(model, tmp_path / "2", hard_label_weight=0)
    constant = run(model, tmp_path / "3", hard_label_weight=1)
    assert growing.weights
    for name, value in growing.weights.items():
        torch.testing.assert_close(value, without.weights[name], rtol=0, atol=1e-6)
    differences = [
        (value - constant.weights[name]).abs().max() for name, value in growing.weights.items()
    ]
    assert max(differences) > 1e-4
