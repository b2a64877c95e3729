"""A teacher in half precision: as transformers loads it, and how far its logits move by it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    T5Config,
)

import raybrew as rb
from raybrew.data.encoding import view_from_ids
from raybrew.data.payload import Signal
from raybrew.data.split import Padding
from raybrew.models.pretrained import quiet_transformers
from raybrew.runs.resolve import resolve_job
from raybrew.teachers.teacher import ModelTeacher
from tests.made import made_teacher, make_job, make_model

LENGTH = 600
SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
LAYERS: dict[str, Any] = {
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 1024,
}

LLAMA = LlamaConfig(**SIZES, **LAYERS, num_key_value_heads=2)
MODERN_BERT = ModernBertConfig(
    **SIZES, **LAYERS, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
)
T5_SIZES: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
T5 = T5Config(vocab_size=60, **T5_SIZES)


def saved(config: PreTrainedConfig, folder: Path) -> str:
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():  # random models of small weights answer all the same
                if weight.dim() > 1:
                    weight.normal_(0, 0.3)
        model.save_pretrained(folder)
    return str(folder)


def ids_of(seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [*torch.randint(3, 60, (LENGTH,), generator=generator).tolist(), 1]  # T5 reads at 1


@pytest.mark.parametrize(
    ("config", "dtype"),
    [(LLAMA, "bfloat16"), (LLAMA, "float16"), (MODERN_BERT, "bfloat16"), (T5, "float16")],
    ids=["llama-bf16", "llama-fp16", "modernbert-bf16", "t5-fp16"],
)
def test_logits_are_those_of_transformers_in_the_same_precision(config, dtype, tmp_path):
    folder = saved(config, tmp_path / "model")
    texts = [ids_of(seed) for seed in range(2)]
    spec = made_teacher(
        name="t",
        model=folder,
        fingerprint="f",
        kind="sequence-classification",
        dtype=dtype,
        batch_tokens=1,  # one text a forward pass
        padding=Padding(0),
        num_threads=1,
    )
    signal = Signal(dtype="float32")
    got = ModelTeacher(spec).answer(view_from_ids(texts), (signal,))[signal.name].values
    with quiet_transformers():
        half = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        ).eval()
        whole_cast = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    nn_cast = torch.nn.Module.to(whole_cast, getattr(torch, dtype))
    np.testing.assert_array_equal(got, logits(half, texts))
    # What a cast of the whole module gives: the test would see it.
    assert np.abs(logits(nn_cast, texts) - got).max() > 0


@torch.inference_mode()
def logits(model: torch.nn.Module, texts: list[list[int]]) -> np.ndarray:
    batches = [torch.tensor([ids]) for ids in texts]
    rows = [model(input_ids=ids, attention_mask=torch.ones_like(ids)) for ids in batches]
    return torch.cat([row.logits.float() for row in rows]).numpy()


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
