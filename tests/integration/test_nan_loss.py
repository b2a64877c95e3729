"""A loss that is NaN on one of two ranks: the run stops, or both leave the step out."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from ray.train import ScalingConfig
from safetensors.torch import load_file

import raybrew as rb
from raybrew.data.batch_sequence import rank_rows
from raybrew.training.loop import StudentTraining
from tests.integration.slow_adaptors import NAN_TOKEN
from tests.made import STUDENT_CONFIG, make_job
from tests.traces import temporaries
from tests.training.in_process import Recorder, build

pytestmark = [
    pytest.mark.ray,
    pytest.mark.beside,
    pytest.mark.long,
    pytest.mark.usefixtures("cluster"),
]

STEPS = 9
PLAIN = {**STUDENT_CONFIG, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
WORKERS = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1})


def nan_job(models, store: Path, on_nan: Literal["skip", "stop"]) -> rb.DistillJob:
    adaptor = "tests.integration.slow_adaptors:nan_at_a_word"
    settings = {"num_steps": STEPS, "batch_size": 16, "optimizer": "SGD", "learning_rate": 0.1}
    return make_job(
        models,
        store,
        student=rb.Student(config=PLAIN, adaptor=adaptor),
        training=rb.TrainingConfig(
            **settings, num_threads=1, checkpoint_every=1, evaluate_every=STEPS, on_nan=on_nan
        ),
    )


def nan_ranks(training: StudentTraining, step: int) -> set[int]:
    """Return the ranks of two that have a row in this step's batch whose loss is NaN."""
    task, rows = training.sequence.batch(step - 1)
    view = training.tasks[task].train.student
    # The first word comes after [CLS].
    seen = [view.input_ids[view.offsets[rank_rows(rows, rank, 2)] + 1] for rank in range(2)]
    return {rank for rank, tokens in enumerate(seen) if NAN_TOKEN in tokens}


def test_a_loss_that_is_nan_on_one_of_two_ranks_stops_both_or_is_left_out_by_both(
    models, tmp_path, run_config
):
    # What one process makes of it; it fills the store for the others.
    alone, pool = build(nan_job(models, tmp_path / "store", "skip"), tmp_path / "alone")
    recorder = Recorder()
    figures = alone.run(recorder)
    pool.flush()
    skipped = [int(event.who.removeprefix("step ")) for event in recorder.events]
    assert any(len(nan_ranks(alone, step)) == 1 for step in skipped)

    stopping = nan_job(models, tmp_path / "store", "stop")
    with pytest.raises(rb.TrainingError, match=rf"step {skipped[0]}: expected a finite gradient"):
        rb.distill(stopping, scaling_config=WORKERS, run_config=run_config)
    skipping = nan_job(models, tmp_path / "store", "skip")
    result = rb.distill(skipping, scaling_config=WORKERS, run_config=run_config, resume=True)

    assert result.metrics["train/skipped_steps"] == figures["train/skipped_steps"] == len(skipped)
    events = [each for each in result.recovered if each["fault"] == "gradient not finite"]
    assert [each["who"] for each in events] == [f"step {step}" for step in skipped]
    assert all("left out on every worker" in each["what"] for each in events)
    # A rank that had taken such a step would have NaN for weights, or others than the other one.
    found = load_file(Path(result.student, "model.safetensors"))
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)
    print(f"gradient not finite: {len(skipped)} of {STEPS} steps left out")
    assert temporaries(tmp_path) == []
