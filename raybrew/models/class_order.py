"""The classes that a model's configuration names, and a head's rows in the order of the task's.

model   0: O    1: PER  2: LOC        names that aren't LABEL_0, … say which class a row is of
task    0: LOC  1: O    2: PER   ──►  order (2, 0, 1)
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from raybrew.errors import ConfigError
from raybrew.models.pretrained import meta_model, random_model
from raybrew.tasks.task_data import TaskData


def model_classes(config: PreTrainedConfig) -> tuple[str, ...]:
    """Return the names of a model's classes, in the order of its logits."""
    given: Mapping[int, str] = config.id2label or {}  # type: ignore[assignment]
    return tuple(given.get(i, f"LABEL_{i}") for i in range(config.num_labels or 0))


def are_named(names: Sequence[str]) -> bool:
    """Whether names say anything: those that transformers makes up, and plain places, don't."""
    places = list(map(str, range(len(names))))
    return list(names) != places and not all(name.startswith("LABEL_") for name in names)


def class_order(names: Sequence[str], classes: Sequence[str]) -> tuple[int, ...] | None:
    """Return a model's number of each of the task's classes.

    Args:
        names: of the model's classes.
        classes: of the task.

    Returns:
        None where they aren't the same names, upper and lower case alike.
    """
    for spelled in (str, str.casefold):
        own, wanted = [spelled(name) for name in names], [spelled(name) for name in classes]
        if sorted(own) == sorted(wanted) and len(set(own)) == len(own):
            return tuple(own.index(name) for name in wanted)
    return None


def names_differ(names: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether a model's classes have names, and the task's too, but other ones."""
    return are_named(names) and are_named(classes) and class_order(names, classes) is None


def check_outputs(what: str, config: PreTrainedConfig, data: TaskData) -> None:
    """Refuse a model whose logits aren't those of the task.

    Args:
        what: the model, for messages.
        config: of the model.
        data: of the task.

    Raises:
        ConfigError: it has another number of classes, or classes of other names.
    """
    classes, names = data.label_names, model_classes(config)
    if not data.kind.has_labels:  # its classes are the tokens, and one tokenizer is the condition
        return
    expected, found = data.kind.num_labels(classes), data.kind.num_labels(names)
    if found != expected:
        named = f" ({', '.join(classes)})" if classes else ""
        raise ConfigError(
            f"{what}: expected {expected} labels as task {data.task.name!r} has{named}, got a "
            f"model with {found}"
        )
    if data.kind.names_classes and names_differ(names, classes):
        raise ConfigError(
            f"{what}: expected the task's labels ({', '.join(classes)}) in any order, got "
            f"{', '.join(names)}; set tasks[{data.task.name}].label_names to the names that the "
            "model has, in the order of the data's numbers"
        )


def order_of(config: PreTrainedConfig, data: TaskData) -> tuple[int, ...] | None:
    """Return a model's number of each of the task's classes.

    Returns:
        None where they are the task's, or names don't say.
    """
    if not data.kind.names_classes:
        return None
    order = class_order(model_classes(config), data.label_names)
    return None if order == tuple(range(len(data.label_names))) else order


def is_unnamed(config: PreTrainedConfig, data: TaskData) -> bool:
    """Return whether a model has no names that say which of its classes is which.

    The order is then taken to be the task's, and tried on labelled rows: also the job's
    `label_names` may be in another order.
    """
    names = model_classes(config)
    return data.kind.names_classes and class_order(names, data.label_names) is None


def assumed_order(what: str, data: TaskData) -> str:
    """Return the warning about a model without names for classes that were sorted."""
    return (
        f"{what}: no names say which of its classes is which; they are taken to be in the sorted "
        f"order of the labels ({', '.join(data.label_names)}); set "
        f"tasks[{data.task.name}].label_names to be sure"
    )


def arrange_head(
    model: PreTrainedModel,
    model_class: Any,
    names: Sequence[str],
    classes: Sequence[str],
    what: str,
) -> None:
    """Bring a head that came along with weights into the order of the task's classes, in place.

    A head of other classes is drawn from the CPU's global generator.

    Args:
        model: of the task; its configuration names the task's classes.
        model_class: transformers' class for such models.
        names: of the classes, in the order that the head came in.
        classes: of the task, as many.
        what: name of the section in the job, for messages.

    Raises:
        ConfigError: no weight of the model is by class.
    """
    order = class_order(names, classes)
    if order == tuple(range(len(classes))) or not (order or names_differ(names, classes)):
        return
    axes = _class_axes(model, model_class, what)
    if not axes:
        raise ConfigError(
            f"{what}: expected a {type(model).__name__} whose head follows config.num_labels, so "
            f"that its classes ({', '.join(names)}) can be brought into the task's order, got "
            f"none of its weights to do so; set label_names of the task to {list(names)}"
        )
    state = model.state_dict()
    with torch.no_grad():
        if order is None:
            drawn = random_model(model_class, model.config).state_dict()
            for name in axes:
                state[name].copy_(drawn[name])
            return
        index = torch.tensor(order)
        for name, dimensions in axes.items():
            for dimension in dimensions:
                state[name].copy_(state[name].index_select(dimension, index))


def _class_axes(model: PreTrainedModel, model_class: Any, what: str) -> dict[str, list[int]]:
    """Return the dimensions of each weight that are by class: those that grow with num_labels."""
    larger = copy.deepcopy(model.config)
    larger.num_labels = len(model_classes(model.config)) + 1
    shapes = meta_model(model_class, larger, what).state_dict()
    axes = {}
    for name, tensor in model.state_dict().items():
        sizes = enumerate(zip(tensor.shape, shapes[name].shape, strict=True))
        if found := [axis for axis, (own, other) in sizes if own != other]:
            axes[name] = found
    return axes
