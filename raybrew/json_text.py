"""JSON as every reader takes it: RFC 8259 has no word for numbers that aren't finite.

nan  inf  -inf   ──►   "nan"  "inf"  "-inf", texts that `float()` reads
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["to_json"]


def to_json(
    value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None
) -> str:
    """Return values as JSON.

    Args:
        value: mappings, lists, texts, numbers also of NumPy, truth values, None.
        indent: spaces of a level; all in one line if left out.
        default: makes one of those of anything else.
    """
    plain = _plain(value)
    return json.dumps(plain, indent=indent, default=default, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
