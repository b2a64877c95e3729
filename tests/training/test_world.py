"""What a step draws follows from seed, step and rank; seeding leaves nothing behind."""

import pytest
import torch

from raybrew.training.world import seed_step_rng

CPU = torch.device("cpu")


def drawn(seed: int, step: int, rank: int) -> list[float]:
    seed_step_rng(seed, step, rank, CPU)
    return torch.rand(4).tolist()


def test_the_same_place_draws_the_same():
    assert drawn(7, 3, 1) == drawn(7, 3, 1)


@pytest.mark.parametrize("other", [(8, 3, 1), (7, 4, 1), (7, 3, 0), (7, 1, 3)])
def test_another_seed_step_or_rank_draws_something_else(other: tuple[int, int, int]):
    assert drawn(7, 3, 1) != drawn(*other)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the queue is of devices not in use")
def test_seeding_steps_queues_nothing():
    before = len(torch.cuda._queued_calls)  # pyright: ignore[reportAttributeAccessIssue]
    for step in range(10):
        seed_step_rng(7, step, 0, CPU)
    assert len(torch.cuda._queued_calls) == before  # pyright: ignore[reportAttributeAccessIssue]
