"""TextBrewer's `data_utils`: noise on lists of tokens, as `np.random.seed` says.

The same distributions, not the same draws: each call takes one seed from NumPy's global generator.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from raybrew.data import augmentation


def masking(tokens: Sequence[Any], p: float = 0.1, mask: Any = "[MASK]") -> list[Any]:
    """Replace each token by the mask with chance p."""
    return augmentation.masking(tokens, _generator(), p=p, mask=mask)


def deleting(tokens: Sequence[Any], p: float = 0.1) -> list[Any]:
    """Leave each token out with chance p."""
    return augmentation.deleting(tokens, _generator(), p=p)


def n_gram_sampling(
    tokens: Sequence[Any],
    p_ng: Sequence[float] = (0.2,) * 5,
    l_ng: Sequence[int] = (1, 2, 3, 4, 5),
) -> list[Any]:
    """Keep one span, of a length drawn from `l_ng` with chances `p_ng`."""
    return augmentation.n_gram_sampling(tokens, _generator(), p_ng=p_ng, l_ng=l_ng)


def short_disorder(
    tokens: Sequence[Any], p: Sequence[float] = (0.9, 0.1, 0.0, 0.0, 0.0)
) -> list[Any]:
    """Put three tokens abc in the order abc, bac, cba, cab or bca, with these chances."""
    return augmentation.short_disorder(tokens, _generator(), p=p)


def long_disorder(tokens: Sequence[Any], p: float = 0.1, length: float = 20) -> list[Any]:
    """Let the halves of a span change places with chance p."""
    return augmentation.long_disorder(tokens, _generator(), p=p, length=length)


def _generator() -> np.random.Generator:
    return np.random.default_rng(np.random.randint(2**31 - 1))
