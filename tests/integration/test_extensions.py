"""What a driver script registers, lambdas too, works in the processes of ranks and teachers."""

import json
from pathlib import Path

import pytest
import torch
from ray.train import RunConfig, ScalingConfig

import raybrew as rb
from raybrew.objective.extensions import KINDS
from tests.made import make_job

pytestmark = [pytest.mark.ray, pytest.mark.beside, pytest.mark.usefixtures("cluster")]


@pytest.fixture
def names():
    before = {kind: dict(known.names) for kind, known in KINDS.items()}
    yield
    for kind, known in KINDS.items():
        known.names.clear()
        known.names.update(before[kind])


@pytest.mark.usefixtures("names")
def test_registered_methods_reach_ranks_and_teachers(models, tmp_path):
    # Made here, so that no module of the workers has them: they travel by value.
    rb.register("kd_loss", "seven", lambda s, t, temperature: (s - t).sum(-1) * 0 + temperature)
    rb.register("temperature_scheduler", "doubled", lambda s, t, temperature: 2 * temperature)
    rb.register("weight_schedule", "third", lambda progress: 1 / 3)
    rb.register(
        "teacher_weighting",
        "only_b",
        lambda teacher_logits: torch.stack(
            [torch.zeros(teacher_logits.shape[1]), torch.ones(teacher_logits.shape[1])]
        ),
    )
    rb.register("match_loss", "five", lambda s, t, mask=None: s.sum() * 0 + t.sum() * 0 + 5)
    rb.register("projection", "widened", lambda small, large: torch.nn.Linear(small, large))
    job = make_job(
        models,
        tmp_path / "store",
        distillation=rb.DistillationConfig(
            temperature=3.5,
            scale_t2=False,
            hard_label_weight=0,
            kd_loss="seven",
            kd_loss_weight_scheduler="third",
            temperature_scheduler="doubled",
            mixture="mean_logits",
            mixture_options={"weighting": "only_b"},
            matches={
                "layer_T": 2,
                "layer_S": 1,
                "feature": "hidden",
                "loss": "five",
                "teacher": "a",
                "proj": ["widened", 16, 32],
            },
        ),
        training=rb.TrainingConfig(num_steps=2, batch_size=16, num_threads=1),
    )
    result = rb.distill(
        job,
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="run", storage_path=str(tmp_path)),
    )
    lines = Path(result.folder, "metrics.jsonl").read_text().splitlines()
    first = next(v for v in map(json.loads, lines) if "train/sum/kd" in v)
    assert first["train/sum/kd"] == pytest.approx(7)
    assert first["train/sum/match/hidden_five_1_2_a"] == pytest.approx(5)
    assert first["train/sum/loss"] == pytest.approx(7 / 3 + 5)
