"""Logits become labels block by block: the same numbers, no large copy, no NaN missed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raybrew.data.payload import Signal, from_storage, torch_dtype
from raybrew.labels import logits as module
from raybrew.labels.logits import TokenTopK, pack_logits, pack_rows, tensors_of
from raybrew.losses.numerics import TopK

LENGTHS = [5, 1, 7, 3]
MASK = (torch.arange(7) < torch.tensor(LENGTHS)[:, None]).long()
CLASSES = 11


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 4


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest tensor has that an operation made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        views = {each.untyped_storage().data_ptr() for each in tree_leaves(args) if _is(each)}
        for each in tree_leaves(made):
            if _is(each) and each.untyped_storage().data_ptr() not in views:
                self.numel = max(self.numel, each.numel())
        return made


def _is(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


@pytest.mark.parametrize("block", [1, 3 * CLASSES, 1 << 22])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layout", ["example", "token"])
def test_blocks_change_nothing(monkeypatch, layout, dtype, block):
    monkeypatch.setattr(module, "_BLOCK_LOGITS", block)
    logits = drawn(4, CLASSES) if layout == "example" else drawn(4, 7, CLASSES)
    rows = logits if layout == "example" else logits[MASK != 0]
    stored = rows.to(torch_dtype(dtype)).float()
    dense, unusable = pack_logits((logits,), MASK, layout, Signal(dtype=dtype))
    assert unusable is None
    kept = from_storage(dense.values, dtype).view(-1, CLASSES)
    assert torch.equal(kept.float(), stored)
    signal = Signal(dtype=dtype, top_k=3, temperatures=(1.0, 4.0))
    payload, unusable = pack_logits((logits,), MASK, layout, signal)
    assert unusable is None
    label = tensors_of(payload, signal)
    if isinstance(label, TokenTopK):
        assert label.offsets.diff().tolist() == LENGTHS
        label = label.top_k
    assert isinstance(label, TopK)
    assert isinstance(label.logsumexp, dict)
    values, classes = stored.topk(3)
    assert torch.equal(label.values, values)
    assert torch.equal(label.indices, classes)
    for temperature, found in label.logsumexp.items():
        torch.testing.assert_close(found, (stored / temperature).logsumexp(-1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e6])
def test_the_first_example_that_is_not_finite_is_found_though_it_is_not_kept(
    monkeypatch, top_k, bad
):
    monkeypatch.setattr(module, "_BLOCK_LOGITS", 2 * CLASSES)
    signal = Signal(dtype="float16", top_k=top_k, temperatures=(1.0,) if top_k else ())
    logits = drawn(4, 7, CLASSES)
    logits[0, 6] = logits[1, 3] = bad  # padding
    assert pack_logits((logits,), MASK, "token", signal)[1] is None
    logits[2, 6, 4] = bad
    logits[3, 0, 4] = bad
    assert pack_logits((logits,), MASK, "token", signal)[1] == 2
    rows = drawn(4, CLASSES)
    rows[1, 0] = bad
    assert pack_rows(rows, None, signal)[1] == 1


def test_no_tensor_of_all_logits_is_made(monkeypatch):
    """Work on the device, and what goes to the host, is a block at most, or what is kept."""
    monkeypatch.setattr(module, "_BLOCK_LOGITS", 4 * 1000)
    logits = drawn(4, 7, 1000).bfloat16()
    signal = Signal(dtype="bfloat16", top_k=5, temperatures=(1.0, 2.0))
    with Largest() as largest:
        pack_logits((logits,), MASK, "token", signal)
    assert largest.numel <= 4 * 1000


@pytest.mark.parametrize("top_k", [None, 2])
def test_no_row_at_all(top_k):
    signal = Signal(top_k=top_k, temperatures=(1.0,) if top_k else ())
    payload, unusable = pack_logits((drawn(2, 3, CLASSES),), torch.zeros(2, 3), "token", signal)
    assert unusable is None
    assert payload.offsets is not None
    assert np.array_equal(payload.offsets, [0, 0, 0])
