import math

import pytest
import torch

import raybrew as rb
from raybrew.training import step as memory
from raybrew.training.snapshot import TrainerState
from raybrew.training.step import MAX_IN_A_ROW, skip_step

# Steps whose gradient is not finite: left out or the end of the run, as set.

LOSSES = {"train/sum/loss": math.nan}


def test_stop_says_the_step_the_loss_and_what_to_do():
    with pytest.raises(rb.TrainingError, match=r"step 7.*train/sum/loss nan.*on_nan: skip"):
        skip_step(TrainerState(6), 7, "stop", LOSSES)


def test_skipped_steps_are_counted_and_too_many_in_a_row_end_the_run():
    progress, event = skip_step(TrainerState(0), 1, "skip", LOSSES)
    for step in range(2, MAX_IN_A_ROW + 1):
        progress, event = skip_step(progress, step, "skip", LOSSES)
    assert progress.skipped == progress.skipped_in_a_row == MAX_IN_A_ROW
    assert "left out" in event.what
    with pytest.raises(rb.TrainingError, match="in a row"):
        skip_step(progress, MAX_IN_A_ROW + 1, "skip", LOSSES)
    # A good step in between: the count begins anew.
    progress, _ = skip_step(progress, MAX_IN_A_ROW + 2, "skip", LOSSES)
    assert progress.skipped_in_a_row == 1
    assert progress.skipped == MAX_IN_A_ROW + 1


# Out of memory in the student's own step or evaluation.


def config(**changes) -> rb.TrainingConfig:
    return rb.TrainingConfig(num_steps=3, batch_size=64, **changes)


def test_a_step_without_memory_says_what_needs_less():
    with (
        pytest.raises(rb.TrainingError) as raised,
        memory.step_memory(config(gradient_accumulation_steps=2), 4),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    message = str(raised.value)
    assert "too little memory for a step, with 8 examples in a forward" in message
    assert "Tried to allocate 2.00 GiB" in message
    for setting in (
        "gradient_accumulation_steps above 2",
        "gradient_checkpointing: true",
        "batch_size below 64",
    ):
        assert setting in message
    with (
        pytest.raises(rb.TrainingError) as raised,
        memory.step_memory(config(gradient_checkpointing=True), 1),
    ):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough")
    assert "gradient_checkpointing" not in str(raised.value)


def test_an_evaluation_without_memory_says_so_and_other_errors_stay_as_they_are():
    with (
        pytest.raises(rb.TrainingError, match=r"an evaluation.*eval_batch_size below 5"),
        memory.evaluation_memory(config(eval_batch_size=5)),
    ):
        raise MemoryError
    # The worker ends with it, and Ray Train starts another.
    with (
        pytest.raises(RuntimeError, match=r"^CUDA error: uncorrectable"),
        memory.step_memory(config(), 1),
    ):
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
