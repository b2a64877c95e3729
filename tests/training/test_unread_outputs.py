"""Logits that no term looks at, and classes that are masked by −∞: no NaN, no work, no gradient."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import raybrew as rb
from raybrew.objective import Objective, TrainProgress
from raybrew.tasks.task_type import View
from raybrew.training.loop import StudentTraining
from raybrew.training.module import ddp_options
from tests.made import STUDENT_CONFIG, make_data, make_job, make_model
from tests.training import user_adaptors
from tests.training.in_process import Recorder, build

TWO_LAYERS = {
    **STUDENT_CONFIG,
    "num_hidden_layers": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
MATCH = {
    "layer_T": 1,
    "layer_S": 1,
    "feature": "hidden",
    "loss": "hidden_mse",
    "proj": ["linear", 16, 32],
}


def training_of(folder: Path, objective: dict[str, Any], **changes: Any) -> StudentTraining:
    job = make_job(
        {"a": make_model(folder / "teacher", 0)},
        folder / "store",
        tasks=[rb.Task(name="sum", train=make_data(24), max_length=32)],
        student=rb.Student(config=TWO_LAYERS, **changes),
        distillation=rb.DistillationConfig(**objective),
        training=rb.TrainingConfig(
            num_steps=3, batch_size=8, learning_rate=1e-2, warmup_ratio=0, num_threads=1
        ),
    )
    return build(job, folder / "data")[0]


def trained(training: StudentTraining) -> Recorder:
    recorder = Recorder()
    training.run(recorder)
    return recorder


def weights(training: StudentTraining) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in training.module.named_parameters()}


ONLY_A_MATCH = {"kd_loss_weight": 0, "hard_label_weight": 0, "matches": [MATCH]}


def test_what_lies_behind_the_last_matched_layer_stays_as_it_is(tmp_path):
    training = training_of(tmp_path, ONLY_A_MATCH)
    before = weights(training)
    losses = trained(training).term("sum")
    assert losses[-1] < losses[0]
    moved = {name for name, p in weights(training).items() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "layer.0" in name or "embeddings" in name} | {
        name for name in before if name.startswith("projections")
    }


def test_ddp_does_not_wait_for_it(tmp_path):
    alone = training_of(tmp_path / "alone", ONLY_A_MATCH)
    trained(alone)
    training = training_of(tmp_path / "wrapped", ONLY_A_MATCH)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        training.wrapped = DistributedDataParallel(
            training.module, find_unused_parameters=training.module.may_skip_parameters
        )
        trained(training)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(weights(training), weights(alone), rtol=0, atol=0)


@pytest.mark.parametrize(
    "objective", [ONLY_A_MATCH, {}, {"kd_loss_weight": 0, "hard_label_weight": 1}]
)
def test_ddp_does_not_wait_for_an_adaptors_losses_or_logits_that_no_term_reads(tmp_path, objective):
    training = training_of(tmp_path, objective)
    training.module._tasks[0]._features._adaptor = user_adaptors.with_a_loss
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        training.wrapped = DistributedDataParallel(
            training.module,
            find_unused_parameters=bool(ddp_options(training.module, training.samples())),
        )
        recorder = trained(training)
    finally:
        dist.destroy_process_group()
    assert len(recorder.term("sum", "loss")) == 3


def test_a_run_without_logits_goes_on_where_it_was(tmp_path):
    whole = training_of(tmp_path, ONLY_A_MATCH)
    trained(whole)
    first = training_of(tmp_path, ONLY_A_MATCH)
    first.begin(Recorder())
    first.num_steps = 2
    trained(first)
    first.save(tmp_path / "checkpoint")
    again = training_of(tmp_path, ONLY_A_MATCH)
    again.resume(tmp_path / "checkpoint")
    trained(again)
    torch.testing.assert_close(weights(again), weights(whole), rtol=0, atol=0)


@pytest.mark.parametrize("kd_loss", ["reverse_kl", "jsd", "skew_kl", "tvd", "dist"])
def test_a_class_that_the_student_masks_leaves_losses_finite(tmp_path, kd_loss):
    objective = {"kd_loss": kd_loss, "hard_label_weight": 0, "matches": [MATCH]}
    adaptor = user_adaptors.masked_class
    recorder = trained(training_of(tmp_path, objective, adaptor=adaptor))
    for term in ("kd", "match/hidden_hidden_mse_1_1", "loss"):
        assert all(map(math.isfinite, recorder.term("sum", term))), term


def test_a_divergence_that_is_infinite_ends_the_run_with_what_to_do(tmp_path):
    training = training_of(tmp_path, {"kd_loss": "kl"}, adaptor=user_adaptors.masked_class)
    with pytest.raises(rb.TrainingError, match=r"step 1: .*kd inf.*mask the same classes.*jsd"):
        trained(training)


def test_the_step_makes_no_copy_of_the_logits(tmp_path):
    """Nothing is computed from logits that no term looks at, their gradient least of all."""
    training = training_of(tmp_path, ONLY_A_MATCH)
    seen = []

    def adaptor(batch, outputs):
        found = user_adaptors.last_layer_first(batch, outputs)
        seen.append(found["logits"])
        found["logits"].register_hook(lambda gradient: pytest.fail("logits got a gradient"))
        return found

    training.module._tasks[0]._features._adaptor = adaptor
    trained(training)
    assert len(seen) == 3


def test_a_mean_over_no_label_adds_nothing():
    """An adaptor's own losses are NaN where a pass, or an empty rank, has no label."""
    loss = torch.tensor(math.nan, requires_grad=True)
    student = View(logits=(torch.zeros(2, 3),), labels=(torch.tensor([-1, -1]),), losses=(loss,))
    objective = Objective(None, {})
    for view in (student, student.without_examples()):
        sums = objective.numerators(view, {}, TrainProgress())
        total = objective.total(
            sums, objective.denominators(view.labels[0].numpy()), TrainProgress()
        )
        assert float(total.detach()) == 0
        assert float(torch.autograd.grad(total, loss)[0]) == 0
