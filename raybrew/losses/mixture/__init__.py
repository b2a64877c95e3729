"""Several teachers on one task: how much each counts in each row, and how they are combined.

teacher_logits (K, *rows, C) ──► teacher_weights ──► (K, *rows)
                                                        │
     mean_logits, mean_probs ──► combine ──► one target (*rows, C) ──► one loss
     sum_losses ──► K losses, each row of each times its weight
"""

from raybrew.losses.mixture.choice import MIXTURES, Mixture, make_mixture
from raybrew.losses.mixture.target import combine
from raybrew.losses.mixture.weights import teacher_weights

__all__ = ["MIXTURES", "Mixture", "combine", "make_mixture", "teacher_weights"]
