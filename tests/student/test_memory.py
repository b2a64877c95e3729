"""Out of memory in the student's own step or evaluation."""

import pytest
import torch

import raybrew as rb
from raybrew.student import memory


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
