"""TextBrewer's `data_utils`: noise on lists of tokens, as `np.random.seed` says.

The same distributions, not the same draws: each call takes one seed from NumPy's global generator.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from raybrew.data.augmentation import OPERATIONS


def _operation(name: str, **defaults: Any) -> Callable[..., list[Any]]:
    """Return an operation with TextBrewer's arguments: the tokens, then its options in order."""
    function = OPERATIONS[name]
    parameters = inspect.signature(function).parameters.values()
    options = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]

    @functools.wraps(function)
    def change(tokens: Any, *arguments: Any, **named: Any) -> list[Any]:
        generator = np.random.default_rng(np.random.randint(2**31 - 1))
        given = dict(zip(options, arguments, strict=False)) | named
        return function(tokens, generator, **{**defaults, **given})

    return change


masking = _operation("masking", mask="[MASK]")
deleting = _operation("deleting")
n_gram_sampling = _operation("n_gram_sampling")
short_disorder = _operation("short_disorder")
long_disorder = _operation("long_disorder")
