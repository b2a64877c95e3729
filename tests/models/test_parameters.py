import time

import pytest
import torch
from torch import nn

import raybrew as rb
from raybrew.models.parameters import (
    count_parameters,
    display_parameters,
    latency_ms,
    parameter_tree,
    size_mb,
)


class Tied(nn.Module):
    """embedding 10 × 4, encoder 4 × 4 + 4 and 4 × 1 + 1, head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("positions", torch.zeros(100))
        self.threads: list[int] = []
        self.modes: list[bool] = []

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.threads.append(torch.get_num_threads())
        self.modes.append(self.training)
        return self.head(self.embedding(ids))


def test_counts_by_hand_with_the_shared_tensor_once():
    tree = parameter_tree(Tied())
    assert tree.count == 40 + 20 + 5
    assert tree.size_bytes == 4 * 65
    assert {name: child.count for name, child in tree.children.items()} == {
        "embedding": 40,
        "encoder": 25,
        "head": 0,
    }
    assert tree.children["encoder"].children["0"].children["weight"].count == 16
    assert [child.shared for child in tree.children.values()] == [False, False, True]


@pytest.mark.parametrize("level", [0, 1, 2, None])
def test_deeper_levels_are_summed_not_lost(level):
    tree = parameter_tree(Tied(), level)
    assert tree.count == 65
    assert bool(tree.children) == (level != 0)
    if level == 1:
        assert not any(child.children for child in tree.children.values())
    if level != 0:
        assert sum(child.count for child in tree.children.values()) == 65


def test_size_and_count_follow_the_precision_and_the_meta_device():
    model = Tied()
    assert (count_parameters(model), size_mb(model)) == (65, 260 / 2**20)
    assert size_mb(model.to(torch.bfloat16)) == 130 / 2**20
    with torch.device("meta"):
        assert count_parameters(Tied()) == 65


def test_the_table_has_counts_shares_and_mb():
    lines = display_parameters(Tied(), max_level=1).splitlines()
    assert lines[0].split() == ["name", "parameters", "share", "MB"]
    assert lines[1].split() == ["model", "65", "100.0", "%", "0.00"]
    assert lines[3].split() == ["encoder", "25", "38.5", "%", "0.00"]
    assert lines[4].split() == ["head", "(shared)", "0", "0.0", "%", "0.00"]
    assert len({len(line) for line in lines}) == 1
    assert "1,000,000" in display_parameters(nn.Linear(1000, 1000, bias=False))


def test_a_driver_script_has_it_too():
    assert rb.display_parameters is display_parameters
    assert all(getattr(rb, name) is not None for name in rb.__all__)


def test_a_model_without_parameters_has_an_empty_table():
    assert display_parameters(nn.ReLU()).splitlines()[1].split()[:2] == ["model", "0"]


def test_latency_runs_on_one_thread_in_evaluation_mode_and_puts_both_back():
    model = Tied()
    model.encoder.eval()  # a part that stays in evaluation mode while the rest trains
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        median, low, high = latency_ms(model, [{"ids": torch.tensor([[1, 2]])}] * 4, repeats=5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert 0 < low <= median <= high
    assert (set(model.threads), set(model.modes), len(model.modes)) == ({1}, {False}, 3 + 20)
    assert model.training
    assert not model.encoder[0].training


def test_latency_is_in_milliseconds(monkeypatch):
    ticks = iter([0.0, 0.010, 1.0, 1.020, 2.0, 2.030])  # forwards of 10, 20 and 30 ms
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    median, low, high = latency_ms(Tied(), [{"ids": torch.tensor([[1]])}], repeats=3)
    assert (median, low, high) == pytest.approx((20, 12, 28))


def test_a_failing_forward_puts_threads_and_modes_back():
    model = Tied()
    before = torch.get_num_threads()
    with pytest.raises(TypeError):
        latency_ms(model, [{"wrong": torch.zeros(1, 2)}])
    assert (torch.get_num_threads(), model.training) == (before, True)


@pytest.mark.parametrize(
    "inputs", [[], [{"ids": torch.zeros(2, 3, dtype=torch.long)}], [{"ids": torch.tensor(1)}]]
)
def test_latency_of_anything_but_single_examples_is_refused(inputs):
    with pytest.raises(ValueError, match="batch size 1"):
        latency_ms(Tied(), inputs)


def test_latency_off_the_cpu_is_refused():
    with torch.device("meta"):
        model = Tied()
    with pytest.raises(ValueError, match="on meta"):
        latency_ms(model, [{"ids": torch.tensor([[1]])}])
