"""Losses on logits: one method, one file; each returns a value for each row and takes no mean.

raw logits ──► log softmax(z/T), or k + 1 buckets ──► divergence ──► (*rows) ──► × T² if asked
"""

from raybrew.losses.soft.kd_loss import BoundKDLoss, KDLoss
from raybrew.losses.soft.registry import KD_LOSSES, as_kd_loss, make_kd_loss
from raybrew.losses.soft.top_k import TopK

__all__ = [
    "KD_LOSSES",
    "BoundKDLoss",
    "KDLoss",
    "TopK",
    "as_kd_loss",
    "make_kd_loss",
]
