import math

import pytest
import torch

import raybrew as rb
from raybrew.training.snapshot import TrainerState
from raybrew.training.step import (
    MAX_SKIPPED_IN_A_ROW,
    evaluation_memory,
    record_skipped_step,
    step_memory,
)

# Steps whose gradient is not finite: left out or the end of the run, as set.

LOSSES = {"train/sum/loss": math.nan}


def test_stop_says_the_step_the_loss_and_what_to_do():
    with pytest.raises(rb.TrainingError, match=r"step 7.*train/sum/loss nan.*on_nan: skip"):
        record_skipped_step(TrainerState(7), "stop", LOSSES)


def test_skipped_steps_are_counted_and_too_many_in_a_row_end_the_run():
    state = TrainerState()
    for state.step in range(1, MAX_SKIPPED_IN_A_ROW + 1):
        event = record_skipped_step(state, "skip", LOSSES)
        assert "left out" in event.what
    assert state.skipped == state.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW
    state.step = MAX_SKIPPED_IN_A_ROW + 1
    with pytest.raises(rb.TrainingError, match="in a row"):
        record_skipped_step(state, "skip", LOSSES)
    # A good step in between: the count starts again.
    state.step = MAX_SKIPPED_IN_A_ROW + 2
    record_skipped_step(state, "skip", LOSSES)
    assert state.skipped_in_a_row == 1
    assert state.skipped == MAX_SKIPPED_IN_A_ROW + 1


# Out of memory in the student's own step or evaluation.


def config(**changes) -> rb.TrainingConfig:
    return rb.TrainingConfig(num_steps=3, batch_size=64, **changes)


def test_a_step_without_memory_says_what_needs_less():
    with (
        pytest.raises(rb.TrainingError) as raised,
        step_memory(config(gradient_accumulation_steps=2), 4),
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
        step_memory(config(gradient_checkpointing=True), 1),
    ):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough")
    assert "gradient_checkpointing" not in str(raised.value)


def test_an_evaluation_without_memory_says_so_and_other_errors_stay_as_they_are():
    with (
        pytest.raises(rb.TrainingError, match=r"an evaluation.*eval_batch_size below 5"),
        evaluation_memory(config(eval_batch_size=5)),
    ):
        raise MemoryError
    # The worker ends with it, and Ray Train starts another.
    with (
        pytest.raises(RuntimeError, match=r"^CUDA error: uncorrectable"),
        step_memory(config(), 1),
    ):
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
