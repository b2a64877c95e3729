"""Names of what teachers ship for matches: equal statistics have equal names, and are kept once.

hidden_mse and cos of layer 4  ──►  hidden.states-L4-float32
mmd of layers 2 and 2          ──►  hidden.shipped_token_gram.divisor=hidden-L2-L2-float32
"""

import functools
import hashlib
import inspect
from collections.abc import Callable
from typing import Any

from raybrew.config.section import import_path_of
from raybrew.labels.payload import Signal
from raybrew.losses.match_spec import MatchSpec
from raybrew.models.custom_match import CustomMatch

__all__ = ["code_name", "signal_of"]

_BUILT_IN = "raybrew."


def signal_of(match: MatchSpec | CustomMatch, dtype: str) -> Signal:
    """Return what the teacher is asked for.

    Args:
        match: how the statistic is made.
        dtype: precision that it is kept in.
    """
    if isinstance(match, CustomMatch):
        axes = "".join(axis[0] for axis in match.axes)
        name = f"module.{_safe(match.module_T)}.{match.output_index}.{axes}"
        return Signal(name, dtype=dtype, recipe=match)
    loss = match.build_loss()
    function: Any = loss.statistic
    options: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        options = {**function.keywords, **options}
        function = function.func
    parts = [match.feature, _statistic_name(function)]
    parts += [f"{key}={value}" for key, value in sorted(options.items()) if value is not None]
    return Signal(".".join(map(_safe, parts)), match.teacher_layers, dtype, recipe=match)


def code_name(function: Callable[..., Any] | str) -> str:
    """Name a user's function by its import path and a hash of its source.

    What it makes is kept beyond the run, so another version of it must not find it.
    """
    if isinstance(function, str):
        return function
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):  # typed into a shell, or an object that is called
        code = getattr(function, "__code__", None)
        source = repr(function) if code is None else f"{code.co_code!r}{code.co_consts!r}"
    digest = hashlib.blake2b(source.encode(), digest_size=4).hexdigest()
    return f"{import_path_of(function)}.{digest}"


def _statistic_name(function: Callable[..., Any]) -> str:
    if function.__module__.startswith(_BUILT_IN):
        return function.__qualname__.lstrip("_")
    return code_name(function)


def _safe(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._=-" else "_" for c in text)
