"""Matches in whole steps: passes, projections, checkpoints, empty ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import raybrew as rb
from raybrew.errors import CheckpointError
from tests.made import STUDENT_CONFIG, make_data, make_job, make_model
from tests.training.in_process import LocalPool, Recorder, build

NO_DROPOUT = {**STUDENT_CONFIG, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
HIDDEN = {"feature": "hidden", "proj": ["linear", 16, 32, {"lr": 5e-3}]}
MATCHES = [
    {"layer_T": 2, "layer_S": 1, "loss": "hidden_mse", "teacher": "a", **HIDDEN},
    {"layer_T": [2, 2], "layer_S": [1, 1], "feature": "hidden", "loss": "mmd", "teacher": "b"},
    {"layer_T": 1, "layer_S": 0, "feature": "attention", "loss": "attention_ce", "teacher": "b"},
    {
        "layer_T": 1,
        "layer_S": 0,
        "feature": "value",
        "loss": "minilm_value_relation",
        "teacher": "a",
    },
]
CUSTOM = {
    "module_T": "bert.encoder.layer.1.output",
    "module_S": "bert.encoder.layer.0.output",
    "loss": "tests.matches.user_matches:masked_squared_error",
    "proj_func": ["linear", 16, 32],
    "teacher": "a",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    return {name: make_model(folder / name, seed) for seed, name in enumerate("ab")}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def made(models, store, folder, matches=(), labels=None, **training):
    job = make_job(
        models,
        store,
        tasks=[rb.Task(name="sum", train=make_data(50), max_length=32)],
        student=rb.Student(config=NO_DROPOUT),
        distillation=rb.DistillationConfig(temperature=2, hard_label_weight=0.5, matches=matches),
        training=rb.TrainingConfig(
            **{
                "num_steps": 5,
                "batch_size": 16,
                "learning_rate": 1e-3,
                "num_threads": 1,
                **training,
            }
        ),
        labels=rb.LabelConfig(store=str(store), window=2, **(labels or {})),
    )
    return build(job, folder)


def trained(training) -> Recorder:
    recorder = Recorder()
    training.run(recorder)
    return recorder


@pytest.mark.parametrize("passes", [2, 4])
def test_accumulated_passes_are_one(models, store, tmp_path, passes):
    whole = trained(made(models, store, tmp_path / "1", MATCHES)[0])
    split = trained(
        made(models, store, tmp_path / "2", MATCHES, gradient_accumulation_steps=passes)[0]
    )
    for name in whole.values[0]:
        if name.startswith("train/sum/"):
            term = name.removeprefix("train/sum/")
            np.testing.assert_allclose(
                whole.term("sum", term), split.term("sum", term), atol=1e-5, err_msg=term
            )


def test_matches_of_one_statistic_keep_their_own_losses_when_passes_are_padded(
    models, store, tmp_path
):
    # One signal serves both, and only the second one, a user's, looks at padding.
    both = [
        {**MATCHES[2], "loss": "attention_mse"},
        {**MATCHES[2], "loss": "tests.losses.user_losses:padded_mean"},
    ]
    whole = trained(made(models, store, tmp_path / "1", both)[0])
    split = trained(made(models, store, tmp_path / "2", both, gradient_accumulation_steps=4)[0])
    for loss in ("attention_mse", "padded_mean"):
        term = f"match/attention_{loss}_0_1_b"
        np.testing.assert_allclose(whole.term("sum", term), split.term("sum", term), atol=1e-5)


def test_bfloat16_labels_are_near_those_of_float32(models, store, tmp_path):
    full = trained(made(models, store, tmp_path / "1", MATCHES)[0])
    half = trained(made(models, store, tmp_path / "2", MATCHES, labels={"dtype": "bfloat16"})[0])
    np.testing.assert_allclose(full.term("sum"), half.term("sum"), rtol=5e-3)
    assert full.term("sum") != half.term("sum")


def test_a_projection_has_a_group_of_its_own(models, store, tmp_path):
    training, _ = made(models, store, tmp_path, [*MATCHES, CUSTOM])
    groups = training.optimization.optimizer.param_groups
    assert [group["initial_lr"] for group in groups] == [1e-3, 5e-3, 1e-3]
    assert [len(group["params"]) for group in groups[1:]] == [2, 2]
    in_groups = {id(p) for group in groups for p in group["params"]}
    assert in_groups == {id(p) for p in training.module.parameters()}
    before = [p.detach().clone() for p in training.module.projections.parameters()]
    trained(training)
    after = list(training.module.projections.parameters())
    assert not any(torch.equal(b, a) for b, a in zip(before, after, strict=True))


def test_projections_stand_beside_a_plain_student_and_come_back(models, store, tmp_path):
    training, _ = made(models, store, tmp_path / "1", [*MATCHES, CUSTOM], num_steps=3)
    trained(training)
    training.save(tmp_path / "checkpoint")
    saved = load_file(tmp_path / "checkpoint" / "projections.safetensors")
    assert set(saved) == set(training.module.projections.state_dict())
    weights = load_file(tmp_path / "checkpoint" / "student" / "model.safetensors")
    assert not any("match" in name or "projection" in name for name in weights)
    again, _ = made(models, store, tmp_path / "2", [*MATCHES, CUSTOM], num_steps=3)
    again.resume(tmp_path / "checkpoint")
    for name, value in again.module.state_dict().items():
        assert torch.equal(value, training.module.state_dict()[name]), name
    other, _ = made(models, store, tmp_path / "3", MATCHES, num_steps=3)
    with pytest.raises(CheckpointError, match="projections of this job's matches"):
        other.resume(tmp_path / "checkpoint")


def attention_of(model: Any) -> str:
    return model.config._attn_implementation


def test_only_what_matches_need_is_asked_of_the_models(models, store, tmp_path):
    training, pool = made(models, store / "own", tmp_path / "1", MATCHES[:1])
    assert isinstance(pool, LocalPool)
    assert attention_of(training.model) != "eager"
    trained(training)
    # 50 rows that differ, one forward for each teacher; b ships logits alone.
    assert {n: r.metrics()["examples"] for n, r in pool.replicas.items()} == {"a": 50, "b": 50}
    figures = {name: r.metrics()["payload_bytes"] for name, r in pool.replicas.items()}
    assert figures["b"] == 50 * 3 * 4
    assert figures["a"] > 50 * 5 * 32 * 4
    eager, _ = made(models, store / "own", tmp_path / "2", MATCHES[2:3])
    assert attention_of(eager.model) == "eager"


def test_matches_alone_teach(models, store, tmp_path):
    job = make_job(
        models,
        store,
        student=rb.Student(config=NO_DROPOUT),
        distillation=rb.DistillationConfig(kd_loss_weight=0, matches=MATCHES[:1]),
        training=rb.TrainingConfig(num_steps=5, batch_size=16, learning_rate=1e-3),
    )
    training, _ = build(job, tmp_path)
    losses = trained(training).term("sum")
    assert losses[-1] < losses[0]
