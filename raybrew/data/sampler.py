"""Placeholder version."""

import numpy as np


class BatchSequence:
    def __init__(self, sizes, batch_size, seed, probabilities=None):
        self.n, self.b, self.seed = sizes[0], batch_size, seed
        self.steps_per_epoch = -(-self.n // batch_size)

    def batch(self, step):
        e, s = divmod(step, self.steps_per_epoch)
        p = np.random.Generator(np.random.PCG64([self.seed, 0, e])).permutation(self.n)
        return 0, p[s * self.b : (s + 1) * self.b]


def rank_rows(rows, rank, world_size):
    return rows[rank::world_size]


def micro_batches(rows, n):
    return np.array_split(rows, n)
