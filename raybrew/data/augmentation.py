"""Changes of lists of tokens, by TextBrewer's names: what an augmented copy of a row reads.

    tokens ──► masking ──► deleting ──► n_gram_sampling ──► short_disorder ──► long_disorder

Tokens may be words, characters, ids, or positions, by which labels follow their words. Nothing is
written to; what comes out is a function of the tokens and the generator's state alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

__all__ = [
    "OPERATIONS",
    "deleting",
    "long_disorder",
    "masking",
    "n_gram_sampling",
    "short_disorder",
]

T = TypeVar("T")

# Of the tokens from here on, which one comes first, second, third: a, ba, cba, cab, bca.
ORDERS = ((0,), (1, 0), (2, 1, 0), (2, 0, 1), (1, 2, 0))


def masking(
    tokens: Sequence[T], generator: np.random.Generator, *, p: float = 0.1, mask: T
) -> list[T]:
    """Replace each token by the mask with chance p.

    Args:
        tokens: any.
        generator: drawn from once a token.
        p: in [0, 1].
        mask: stands for a token.

    Returns:
        As many tokens.
    """
    drawn = generator.random(len(tokens))
    return [mask if chance < p else token for token, chance in zip(tokens, drawn, strict=True)]


def deleting(tokens: Sequence[T], generator: np.random.Generator, *, p: float = 0.1) -> list[T]:
    """Leave each token out with chance p; there may be none left."""
    kept = generator.binomial(1, 1 - p, len(tokens))
    return [token for token, keep in zip(tokens, kept, strict=True) if keep]


def n_gram_sampling(
    tokens: Sequence[T],
    generator: np.random.Generator,
    *,
    p_ng: Sequence[float] = (0.2,) * 5,
    l_ng: Sequence[int] = (1, 2, 3, 4, 5),
) -> list[T]:
    """Keep one span, of a length drawn from `l_ng` with chances `p_ng`, from anywhere.

    A list that is shorter than the span is kept whole.
    """
    length = int(generator.choice(l_ng, p=p_ng))
    if length >= len(tokens):
        return list(tokens)
    start = int(generator.integers(0, len(tokens) - length + 1))
    return list(tokens[start : start + length])


def short_disorder(
    tokens: Sequence[T],
    generator: np.random.Generator,
    *,
    p: Sequence[float] = (0.9, 0.1, 0.0, 0.0, 0.0),
) -> list[T]:
    """From left to right, put the next three tokens abc in another order, and go on behind them.

    Args:
        tokens: any.
        generator: drawn from once a place.
        p: chances of abc (go on by one), bac (go on by two), cba, cab and bca (by three). The last
            two tokens change places in any of the last four cases.

    Returns:
        The same tokens.
    """
    found, place = list(tokens), 0
    while place < len(found) - 1:
        case = int(generator.choice(len(ORDERS), p=p))
        if case and place == len(found) - 2:
            case = 1
        order = ORDERS[case]
        span = found[place : place + len(order)]
        found[place : place + len(order)] = [span[source] for source in order]
        place += len(order)
    return found


def long_disorder(
    tokens: Sequence[T], generator: np.random.Generator, *, p: float = 0.1, length: float = 20
) -> list[T]:
    """From left to right, let the halves of the next span change places with chance p.

    Args:
        tokens: any.
        generator: drawn from once a place.
        p: in [0, 1]; a span that stays as it is is left by one token, one that changes by all.
        length: tokens of a span, rounded up to an even number; up to 1 it is a share of all.

    Returns:
        The same tokens.
    """
    found, place = list(tokens), 0
    size = (int(length if length > 1 else length * len(found)) + 1) // 2 * 2
    while size and place <= len(found) - size:
        if generator.random() < p:
            middle, end = place + size // 2, place + size
            found[place:end] = found[middle:end] + found[place:middle]
            place = end
        else:
            place += 1
    return found


OPERATIONS: Mapping[str, Callable[..., list[Any]]] = {
    "masking": masking,
    "deleting": deleting,
    "n_gram_sampling": n_gram_sampling,
    "short_disorder": short_disorder,
    "long_disorder": long_disorder,
}
