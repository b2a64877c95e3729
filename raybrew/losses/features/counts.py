"""Denominators of the match losses: functions of lengths n and static sizes alone."""

from jaxtyping import Float
from torch import Tensor

from raybrew.losses.features.ragged import FeatureSizes

__all__ = [
    "examples",
    "gram_entries",
    "head_pairs",
    "head_queries",
    "pairs",
    "pairs_of_examples",
    "token_entries",
    "tokens",
    "triplets_of_examples",
    "two_examples",
]

Lengths = Float[Tensor, " batch"]


def tokens(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return n: a mean over tokens."""
    return lengths


def token_entries(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return n·H: a mean over the entries of real tokens."""
    return lengths * sizes.hidden


def pairs(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return n²: a mean over pairs of real tokens."""
    return lengths.square()


def head_pairs(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return A·n²: a mean over heads and pairs of real tokens."""
    return lengths.square() * sizes.heads


def head_queries(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return A·n: a mean over heads and queries."""
    return lengths * sizes.heads


def examples(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return 1 for each example that has a real token."""
    return (lengths > 0).to(lengths.dtype)


def gram_entries(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return H²: a mean over a Gram matrix of features."""
    return examples(lengths, sizes) * sizes.hidden**2


def pairs_of_examples(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return N each, N² in sum: a mean over pairs of the N examples that have a token."""
    present = examples(lengths, sizes)
    return present * present.sum()


def triplets_of_examples(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return N² each, N³ in sum."""
    present = examples(lengths, sizes)
    return present * present.sum().square()


def two_examples(lengths: Lengths, sizes: FeatureSizes) -> Lengths:
    """Return 1 for each example in a batch of two or more: one alone can't be compared."""
    present = examples(lengths, sizes)
    return present * (present.sum() > 1)
