"""Which teacher of a script gave an answer: its weights, its code, its adaptor, how it is run.

What can't be told from content, such as an object that an adaptor has closed over, counts as
different in every process: its labels are computed anew rather than mistaken for another's.
"""

import functools
import inspect
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import torch
import xxhash
from torch import nn

from raybrew.matches.capture import code_name

_PLAIN = (bool, int, float, str, bytes, type(None))
_THIS_PROCESS = uuid.uuid4().hex


def teacher_fingerprint(
    model: nn.Module, adaptor: Callable[..., Any], arguments: Mapping[str, Any], precision: str
) -> str:
    """Hash all that a teacher's answer depends on besides the example.

    Args:
        model: its weights, its layers and its class count.
        adaptor: what turns outputs into logits and features.
        arguments: given to every forward pass.
        precision: that the forward pass computes in.

    Returns:
        32 hexadecimal digits.
    """
    digest = xxhash.xxh3_128()
    for name, value in model.state_dict().items():
        tensor = torch.as_tensor(value).detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    config: Any = getattr(model, "config", None)
    said = config.to_json_string() if hasattr(config, "to_json_string") else ""
    digest.update(f"{code_name(type(model))}{model!r}{said}".encode())
    digest.update(_told(adaptor).encode())
    digest.update(f"{_told(dict(arguments))}{precision}".encode())
    return digest.hexdigest()


def _told(value: Any) -> str:
    """Say what a value is, so that equal words mean equal behaviour."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"({','.join(map(_told, value))})"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key!r}:{_told(each)}' for key, each in value.items())}}}"
    if isinstance(value, functools.partial):
        return f"partial{_told([value.func, value.args, value.keywords])}"
    if inspect.ismethod(value):
        return f"method{_told([value.__func__, value.__self__])}"
    if inspect.isfunction(value):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return f"{code_name(value)}{_told([cells, value.__defaults__ or (), value.__kwdefaults__])}"
    if inspect.isclass(value) or inspect.isbuiltin(value):
        return code_name(value)
    if callable(value) and hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        return f"{code_name(type(value))}{_told(vars(value))}"
    return f"{type(value).__qualname__}@{id(value)}.{_THIS_PROCESS}"
