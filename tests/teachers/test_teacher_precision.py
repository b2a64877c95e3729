"""What a teacher computes in: its layers during a forward, and how far its logits move by it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import raybrew as rb
from raybrew.data.payload import Signal
from raybrew.runs.resolve import resolve_job
from raybrew.teachers.teacher import ModelTeacher
from tests.made import make_job, make_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("teacher"), 0)


def answered(model: str, folder, dtype: Any) -> tuple[np.ndarray, set[torch.dtype]]:
    """Return the logits of the training examples, and the dtypes of all linear layers' outputs."""
    teacher = rb.Teacher(name="a", task="sum", model=model, dtype=dtype)
    preparation = resolve_job(make_job({}, folder / "store", teachers=[teacher]), folder)
    host = ModelTeacher(preparation.teachers[0])
    seen: set[torch.dtype] = set()

    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        seen.add(output.dtype)

    for module in host._model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(hook)
    view = preparation.tasks[0].split("train").student
    return host.answer(view, (Signal(),))["logits-float32"].values, seen


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_teacher_computes_in_its_dtype_and_its_logits_are_those_of_float32_but_for_roundings(
    model, tmp_path, dtype
):
    full, in_full = answered(model, tmp_path / "full", "float32")
    half, in_half = answered(model, tmp_path / "half", dtype)
    assert in_full == {torch.float32}
    assert in_half == {DTYPES[dtype]}
    # Kept in float32, whatever they were computed in.
    assert full.dtype == half.dtype == np.float32
    eps = torch.finfo(DTYPES[dtype]).eps
    assert 0 < np.abs(half - full).max() < 4 * eps * np.abs(full).max()
