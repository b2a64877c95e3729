"""Matches on a real Ray: two teachers, projections, two workers."""

import json
from pathlib import Path

import numpy as np
import pytest
from ray.train import RunConfig, ScalingConfig
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import raybrew as rb
from raybrew.labels.leases import LEASES
from tests.made import STUDENT_CONFIG, make_job
from tests.training import in_process
from tests.training.user_adaptors import last_layer_first

pytestmark = [pytest.mark.ray, pytest.mark.beside, pytest.mark.usefixtures("cluster")]

UNIQUE = 84 + 30  # rows of make_job's data that differ
NUM_STEPS = 12
HIDDEN = {"feature": "hidden", "proj": ["linear", 16, 32, {"lr": 3e-3}]}
MATCHES = [
    {"layer_T": 2, "layer_S": 1, "loss": "hidden_mse", "teacher": "a", **HIDDEN},
    {"layer_T": 2, "layer_S": 1, "loss": "cos", "teacher": "a", **HIDDEN},
    {"layer_T": [1, 1], "layer_S": [1, 1], "feature": "hidden", "loss": "mmd", "teacher": "b"},
    {
        "layer_T": 1,
        "layer_S": 0,
        "feature": "attention",
        "loss": "attention_mse",
        "teacher": "b",
        "weight": 10,
    },
    {
        "module_T": "bert.encoder.layer.1.output",
        "module_S": "bert.encoder.layer.0.output",
        "loss": "tests.matches.user_matches:squared_error",
        "proj_func": ["tanh", 16, 32],
        "teacher": "b",
    },
]
TERMS = (
    "kd",
    "hard",
    "match/hidden_hidden_mse_1_2_a",
    "match/hidden_cos_1_2_a",
    "match/hidden_mmd_1-1_1-1_b",
    "match/attention_attention_mse_0_1_b",
    "loss",
)


def job_of(models, store: Path, matches=MATCHES) -> rb.DistillJob:
    return make_job(
        models,
        store,
        distillation=rb.DistillationConfig(temperature=2, hard_label_weight=0.5, matches=matches),
        # 90 rows in batches of 16: the last batch of an epoch has 10, five a rank.
        training=rb.TrainingConfig(
            num_steps=NUM_STEPS,
            batch_size=16,
            learning_rate=1e-3,
            num_threads=1,
            keep_checkpoints=True,
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


def term(result: rb.RunResult, name: str) -> list[float]:
    lines = Path(result.folder, "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line).get(f"train/sum/{name}") for line in lines]
    return [value for value in found if value is not None]


def test_two_workers_with_matches_and_projections_are_one(models, tmp_path):
    # The mean of a user's own number depends on the passes: the library's losses don't.
    own = [match for match in MATCHES if "loss" in match and "module_T" not in match]
    # One is this process, with labels that it computes itself.
    one = in_process.run(job_of(models, tmp_path / "1", own), tmp_path / "run1")
    two = run(job_of(models, tmp_path / "2", own), tmp_path / "run2")
    # Every (teacher, example) once, for all signals of the teacher together.
    assert two.labels["needed"] == two.labels["forwards"] == 2 * UNIQUE
    for name in TERMS:
        assert len(term(two, name)) == NUM_STEPS, name
        np.testing.assert_allclose(one.term("sum", name), term(two, name), atol=1e-5, rtol=0)
    assert term(two, "loss")[0] - term(two, "loss")[-1] > 0.01
    # hidden_mse and cos of one layer share a folder.
    folders = {path.name for path in (tmp_path / "2").glob("*/*") if path.is_dir()}
    stored = sorted(folders - {LEASES})
    assert stored == [
        "attention.head_maps-L1-float32",
        "hidden.shipped_token_gram.divisor=hidden-L1-L1-float32",
        "hidden.states-L2-float32",
        "logits-float32",
    ]


def test_a_custom_match_trains_and_its_projection_is_in_the_checkpoint(models, tmp_path):
    result = run(job_of(models, tmp_path / "store"), tmp_path)
    custom = "match/custom_bert.encoder.layer.0.output_bert.encoder.layer.1.output_b"
    values = term(result, custom)
    assert values[-1] < values[0]
    # The student on disk is a plain model of transformers; projections lie beside it.
    assert AutoModelForSequenceClassification.from_pretrained(result.student)
    files = sorted(Path(result.folder).rglob("projections.safetensors"))
    assert files
    shapes = {name: tuple(value.shape) for name, value in load_file(files[-1]).items()}
    assert sorted(shapes.values()) == [(32,)] * 3 + [(32, 16)] * 3


def test_an_adaptor_of_the_users_reaches_teachers_and_students(models, tmp_path):
    teachers = [
        rb.Teacher(
            name="a",
            task="sum",
            model=models["a"],
            resources={"CPU": 0.25},
            adaptor=last_layer_first,
        )
    ]
    match = {"layer_T": 0, "layer_S": 1, "loss": "hidden_mse", **HIDDEN}
    job = make_job(
        models,
        tmp_path / "store",
        teachers=teachers,
        distillation=rb.DistillationConfig(matches=match),
    )
    result = rb.distill(job, run_config=RunConfig(name="run", storage_path=str(tmp_path)))
    # Layer 0 of this adaptor is the last one: the same loss as layer 2 without it.
    saved = Path(result.folder, "job.yaml").read_text()
    assert "adaptor: tests.training.user_adaptors:last_layer_first" in saved
    plain = make_job(
        {"a": models["a"]},
        tmp_path / "store",
        distillation=rb.DistillationConfig(matches={**match, "layer_T": 2}),
    )
    training, pool = in_process.build(plain, tmp_path / "plain")
    other = in_process.Recorder()
    training.run(other)
    np.testing.assert_allclose(
        term(result, "match/hidden_hidden_mse_1_0"),
        other.term("sum", "match/hidden_hidden_mse_1_2"),
        rtol=1e-5,
    )
    # Another adaptor is another teacher: nothing of the one is taken for the other's.
    assert result.labels["forwards"] == UNIQUE
    assert pool.replicas["a"].metrics()["examples"] == 84  # the training rows: it judges no teacher
