"""An optimizer's state in two parts, so that it can be written without code: tensors and values."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["joined_state", "plain", "split_state"]


def split_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of an optimizer by "parameter.name", and the rest for JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            target = tensors if isinstance(value, Tensor) else scalars
            target[f"{index}.{name}"] = value
    return tensors, {"scalars": scalars, "param_groups": state["param_groups"]}


def joined_state(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Put the two parts together as `Optimizer.load_state_dict` takes them."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**record["scalars"], **tensors}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": record["param_groups"]}


def plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schedule's state for JSON.

    Schedules of transformers carry their functions as None; tensors would not be plain.
    """
    return {k: v.item() if isinstance(v, Tensor) else v for k, v in state.items()}
