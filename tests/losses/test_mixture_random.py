"""The random pick of a teacher: a function of seed, epoch and key, in the right proportions."""

import hashlib
import math

import pytest
import torch
from torch import Tensor

from raybrew.losses.mixture import make_mixture, teacher_weights

torch.set_num_threads(1)

EQUAL = (1.0, 1.0)


def keys(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint64)


def race(key: int, seed: int, epoch: int, weights: tuple[int, ...]) -> int:
    """Pick as `random_pick` does, on Python's unbounded integers."""

    def scrambled(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    times = []
    for teacher, weight in enumerate(weights):
        salt = hashlib.blake2b(f"{seed}/{epoch}/{teacher}".encode(), digest_size=8).digest()
        bits = scrambled((scrambled(key) + int.from_bytes(salt)) % 2**64) >> 11
        times.append(-math.log((bits + 0.5) / 2**53) / weight)
    return times.index(min(times))


class TestRandomPick:
    def pick(self, row_keys: Tensor, epoch=0, seed=0, weights=EQUAL, available=None) -> Tensor:
        mixture = make_mixture("random", {"seed": seed})
        logits = torch.zeros(len(weights), *row_keys.shape, 2)
        got = teacher_weights(
            mixture, logits, weights, row_keys=row_keys, epoch=epoch, available=available
        )
        assert set(got.unique().tolist()) <= {0.0, 1.0}
        return got.argmax(0)

    def test_it_depends_on_seed_epoch_and_key_alone(self):
        row_keys = (torch.arange(64) * 2**57 - 2**63 + 17).view(torch.uint64)
        picked = self.pick(row_keys)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        moved = row_keys.view(torch.int64)[order].view(torch.uint64)
        assert torch.equal(self.pick(moved), picked[order])
        assert torch.equal(self.pick(row_keys.view(torch.int64)), picked)
        assert torch.equal(
            self.pick(row_keys.view(torch.int64)[5:9].view(torch.uint64)), picked[5:9]
        )
        assert not torch.equal(self.pick(row_keys, epoch=1), picked)
        assert not torch.equal(self.pick(row_keys, seed=1), picked)

    def test_it_equals_the_same_hash_on_whole_numbers(self):
        values = [0, 1, 2, 3, 2**62 + 5, 2**63, 2**64 - 1]
        picked = self.pick(keys(*values), epoch=4, seed=9, weights=(1, 2, 3))
        expected = [race(value, seed=9, epoch=4, weights=(1, 2, 3)) for value in values]
        assert picked.tolist() == expected
        # A resumed run must pick as the one before it did: these may not change.
        assert self.pick(keys(0, 1, 2, 3, 2**63, 2**64 - 1), weights=(1, 1, 1)).tolist() == [
            1,
            2,
            1,
            0,
            2,
            0,
        ]

    def test_it_follows_the_static_weights(self):
        row_keys = torch.arange(20_000)
        shares = self.pick(row_keys, weights=(1.0, 0.0, 3.0)).bincount(minlength=3) / 20_000
        # Five standard deviations of a fair draw: 5 · √(¾ · ¼ / 20000) = 0.0153.
        assert shares.tolist() == pytest.approx([0.25, 0.0, 0.75], abs=0.0153)
        assert shares[1] == 0

    def test_epochs_are_independent(self):
        row_keys = torch.arange(20_000)
        same = (self.pick(row_keys) == self.pick(row_keys, epoch=1)).double().mean()
        assert same.item() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(20_000))

    def test_when_a_teacher_goes_only_its_rows_are_picked_anew(self):
        row_keys = torch.arange(300)
        available = torch.ones(3, 300, dtype=torch.bool)
        available[1] = False
        before = self.pick(row_keys, weights=(1, 1, 1))
        after = self.pick(row_keys, weights=(1, 1, 1), available=available)
        assert (before == 1).any()
        assert torch.equal(after[before != 1], before[before != 1])
        assert set(after.tolist()) == {0, 2}
