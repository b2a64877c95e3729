"""Weights that a student's forward pass never reads, and what DDP has to know of them.

BigBird's pooler, XLNet's mask embedding, an unused module of a user's class: no gradient ever
reaches them. DDP, which waits for one of each weight, has to look for such weights in every step.
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor, nn

from raybrew.data.collate import collate, collate_labels
from raybrew.models.pretrained import describe_names, own_generator
from raybrew.student.loop import StudentTraining
from raybrew.student.module import StudentAnswer

__all__ = ["ddp_options", "unread_weights"]

_EXAMPLES = 2

_log = logging.getLogger(__name__)


def ddp_options(training: StudentTraining) -> dict[str, bool]:
    """Return DDP's arguments for a student; looking for unread weights takes it time each step."""
    if training.module.may_leave_parameters_out or _drops_layers(training.module):
        return {"find_unused_parameters": True}
    unread = unread_weights(training)
    if not unread:
        return {}
    _log.info("weights that the student never reads stay as they are: %s", describe_names(unread))
    return {"find_unused_parameters": True}


def unread_weights(training: StudentTraining) -> list[str]:
    """Return the weights that learn in name only: no output for any task depends on them.

    The first rows of each task are read without dropout; the module is left in training mode and
    the global generator as it is.
    """
    module = training.module
    read: set[Tensor] = set()
    device = next(module.parameters()).device
    module.eval()
    with own_generator(0):
        for number, task in enumerate(training.tasks):
            rows = np.arange(min(_EXAMPLES, len(task.train)))
            padding = training.padding(number)
            inputs = collate(task.train.student, rows, padding)
            labels = collate_labels(task.train, rows, inputs["input_ids"].shape[1])
            inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
            read |= _leaves(list(_outputs(module(inputs, labels.to(device), number))))
    module.train()
    return [n for n, p in module.named_parameters() if p.requires_grad and p not in read]


def _outputs(answer: StudentAnswer) -> Iterator[Tensor]:
    view = answer.view
    for tensors in (view.logits, view.losses, view.hidden, view.attention):
        yield from tensors
    for features in answer.features.values():
        yield from features
    if answer.balance is not None:
        yield answer.balance


def _leaves(outputs: Sequence[Tensor]) -> set[Tensor]:
    """Return the tensors that a backward pass from these would give gradients."""
    found = {each for each in outputs if each.is_leaf}
    nodes = [each.grad_fn for each in outputs if each.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(leaf)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return found


def _drops_layers(module: nn.Module) -> bool:
    """Whether whole layers are left out at random (LayerDrop), other ones in each step."""
    configs = [getattr(each, "config", None) for each in module.modules()]
    return any(
        value
        for config in configs
        if config is not None
        for name, value in vars(config).items()
        if name.endswith("layerdrop")
    )
