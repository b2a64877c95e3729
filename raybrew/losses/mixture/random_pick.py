"""A random pick that is a function of seed, epoch and the row's key, and of nothing else."""

import hashlib
import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

__all__ = ["random_pick"]


def random_pick(
    row_keys: Int64[Tensor, "*rows"],
    static_weights: Float[Tensor, "..."],
    available: Bool[Tensor, " teachers *rows"],
    seed: int,
    epoch: int,
) -> Int64[Tensor, "*rows"]:
    """Pick a teacher in each row, by an exponential race: argmin_k −log(u_k) / w_k.

    u_k is a hash of (seed, epoch, k, key). Teacher k wins with probability w_k / Σ w, and when a
    teacher drops out only the rows it had won are picked anew.

    Args:
        row_keys: the bits of each row's key.
        static_weights: (teachers, 1, …), in proportion to the chances.
        available: teachers that may be picked.
        seed: of the run.
        epoch: counts from 0.

    Returns:
        The teacher's index in each row.
    """
    keys = _scrambled(row_keys)
    times = []
    for teacher in range(len(available)):
        salt = hashlib.blake2b(f"{seed}/{epoch}/{teacher}".encode(), digest_size=8).digest()
        bits = _shifted(_scrambled(keys + int.from_bytes(salt, signed=True)), 11)
        uniform = (bits.to(torch.float64) + 0.5) * 2.0**-53
        times.append(-uniform.log())
    race = torch.stack(times) / static_weights.to(torch.float64)
    return race.masked_fill(~available, math.inf).argmin(dim=0)


def _scrambled(values: Tensor) -> Tensor:
    """Mix the bits of int64 (the finaliser of SplitMix64), with wrapping products."""
    values = (values ^ _shifted(values, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    values = (values ^ _shifted(values, 27)) * (0x94D049BB133111EB - 2**64)
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
