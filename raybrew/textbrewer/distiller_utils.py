"""TextBrewer's `distiller_utils`: batches, what adaptors give, custom matches.

batch ──► get_outputs_from_batch ──► adaptor ──► post_adaptor ──► results_T, results_S
"""

# `from textbrewer.distiller_utils import *` gives scripts these names as well.
import json  # noqa: F401
import logging
import os  # noqa: F401
import random  # noqa: F401
from collections import OrderedDict  # noqa: F401
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Dict, List, Optional, Self, Union  # noqa: F401, UP035

import numpy as np  # noqa: F401
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: F401

from raybrew.errors import ConfigError, TeacherError
from raybrew.losses.mixture import probability_shift
from raybrew.textbrewer.configurations import (  # noqa: F401
    DistillationConfig,
    IntermediateMatch,
    TrainingConfig,
)
from raybrew.textbrewer.presets import (  # noqa: F401
    ADAPTOR_KEYS,
    FEATURES,
    KD_LOSS_MAP,
    MATCH_LOSS_MAP,
    PROJ_MAP,
    TEMPERATURE_SCHEDULER,
    WEIGHT_SCHEDULER,
)

logger = logging.getLogger(__name__)

Adaptor = Callable[[Any, Any], Mapping[str, Any]]
Results = dict[str, Any]
"""What an adaptor gives; logits, masks, losses and labels are lists."""

_LISTS = ("logits", "logits_mask", "losses", "labels")
_warned_of: set[tuple[str, str]] = set()


def move_to_device(batch: Any, device: torch.device | str) -> Any:
    """Put every tensor of a batch, or of a model's outputs, on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, list | tuple):
        return tuple(move_to_device(each, device) for each in batch)
    if isinstance(batch, Mapping):
        return {key: move_to_device(each, device) for key, each in batch.items()}
    return batch


def auto_forward(model: Any, batch: Any, args: Mapping[str, Any]) -> Any:
    """Run a model, or each of a list or a dict of them: by name, by position, or on a tensor."""
    if isinstance(model, list | tuple):
        return [auto_forward(each, batch, args) for each in model]
    if isinstance(model, Mapping):
        return {name: auto_forward(each, batch, args) for name, each in model.items()}
    if isinstance(batch, Mapping):
        return model(**batch, **args)
    if isinstance(batch, list | tuple):
        return model(*batch, **args)
    return model(batch, **args)


def sides_of(batch: Any) -> tuple[Any, Any, Any]:
    """Return what the teacher and the student read of a batch, and the teacher's cached outputs."""
    if isinstance(batch, Mapping) and "teacher" in batch and "student" in batch:
        return batch["teacher"], batch["student"], batch.get("teacher_cache")
    return batch, batch, None


def get_outputs_from_batch(
    batch: Any,
    device: torch.device | str,
    model_T: Any,
    model_S: nn.Module,
    args: Mapping[str, Any],
    no_teacher_forward: bool = False,
) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Run teacher and student on a batch.

    Args:
        batch: what both read, or a dict of `teacher`, `student` and perhaps `teacher_cache`.
        device: where they read it.
        model_T: the teacher, or a list or dict of them; it answers in evaluation mode.
        model_S: the student.
        args: of both forward passes.
        no_teacher_forward: whether the teacher is left out.

    Returns:
        The teacher's batch and outputs, None if it is left out; the student's.
    """
    batch_T, batch_S, cache = sides_of(batch)
    batch_S, is_shared = move_to_device(batch_S, device), batch_S is batch_T
    batch_T = batch_S if is_shared else move_to_device(batch_T, device)
    outputs = None
    if not no_teacher_forward:
        outputs = run_teacher(model_T, batch_T, args, move_to_device(cache, device))
    return (batch_T, outputs), (batch_S, auto_forward(model_S, batch_S, args))


@torch.no_grad()
def run_teacher(model: Any, batch: Any, args: Mapping[str, Any], cache: Any = None) -> Any:
    """Return a teacher's outputs: of its evaluation mode, or those that the script brings along."""
    if cache is not None:
        return cache
    with evaluating(model):
        return auto_forward(model, batch, args)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model, or a list or dict of models, into evaluation mode for a while."""
    models = list(model.values()) if isinstance(model, Mapping) else model
    each = models if isinstance(models, list | tuple) else [models]
    training = [module for one in each for module in one.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def post_adaptor(dict_object: Any) -> Any:
    """Put logits, masks, losses and labels into lists, in place."""
    for key in _LISTS:
        if key in dict_object and not isinstance(dict_object[key], list | tuple):
            dict_object[key] = [dict_object[key]]
    return dict_object


def read_results(adaptor: Adaptor, batch: Any, outputs: Any) -> Results:
    """Call an adaptor and bring what it gives into one form, without what is None.

    Raises:
        ConfigError: it gives nothing, or not as many masks as logits.
    """
    name = getattr(adaptor, "__name__", type(adaptor).__name__)
    found = {key: each for key, each in adaptor(batch, outputs).items() if each is not None}
    if not found.keys() & set(ADAPTOR_KEYS):
        got = ", ".join(found) or "an empty dict"
        raise ConfigError(
            f"adaptor {name}: expected one or more of {', '.join(ADAPTOR_KEYS)}, got {got}"
        )
    for key in found.keys() - set(ADAPTOR_KEYS):
        if (name, key) not in _warned_of:
            _warned_of.add((name, key))
            logger.warning("adaptor %s: no loss of TextBrewer's reads its %r", name, key)
    results = post_adaptor(found)
    num_logits, num_masks = (len(results.get(key, ())) for key in ("logits", "logits_mask"))
    # One mask may serve several logits.
    if num_masks == 1:
        results["logits_mask"] = list(results["logits_mask"]) * num_logits
    elif num_masks not in (0, num_logits):
        raise ConfigError(
            f"adaptor {name}: expected one logits_mask or one for each of the {num_logits} logits, "
            f"got {num_masks}"
        )
    return results


def select_logits_with_mask(
    logits_list: Sequence[Tensor], masks_list: Sequence[Tensor | None]
) -> list[Tensor]:
    """Return the rows of (B, L, C) logits that a mask (B, L) keeps, (R, C); other logits as is."""
    masks = list(masks_list) * len(logits_list) if len(masks_list) == 1 else masks_list
    return [
        logits[mask != 0] if logits.dim() == 3 and mask is not None else logits
        for logits, mask in zip(logits_list, masks, strict=True)
    ]


def probability_shift_(tensor: Tensor, labels: Tensor) -> Tensor:
    """Swap the true class's logit with the largest one, in place; negative labels change nothing.

    Args:
        tensor: (B, C) or (B, L, C).
        labels: (B,) or (B, L).
    """
    return tensor.copy_(probability_shift(tensor, labels))


def check_logits(teacher: str, theirs: Sequence[Tensor], own: Sequence[Tensor]) -> None:
    """Compare a teacher's logits with the student's, both row by row.

    Raises:
        TeacherError: another number of them, or other shapes.
    """
    if len(theirs) != len(own):
        raise TeacherError(
            f"teacher {teacher}: expected {len(own)} logits, as the student's adaptor gives, got "
            f"{len(theirs)}; without a loss on logits set kd_loss_weight to 0"
        )
    for given, expected in zip(theirs, own, strict=True):
        if given.shape != expected.shape:
            raise TeacherError(
                f"teacher {teacher}: expected logits {list(expected.shape)}, as the student's, got "
                f"{list(given.shape)}: rows are examples, or the tokens that logits_mask keeps, "
                "and classes"
            )


def match_features(results: Results, match: IntermediateMatch, side: str) -> Any:
    """Return what a match compares of a model: a tensor, or a list of them for several layers.

    Args:
        results: of the model.
        match: the match.
        side: `teacher` or `student`.

    Raises:
        ConfigError: the adaptor gives no such layer; names the match.
    """
    layers = match.layer_T if side == "teacher" else match.layer_S
    found = results.get(match.feature, ())
    several = isinstance(layers, list | tuple)
    asked = layers if several else [layers]
    absent = [layer for layer in asked if layer >= len(found) or found[layer] is None]
    if absent:
        has = f"0 to {len(found) - 1}" if found else "none"
        raise ConfigError(
            f"{match.spec.label}: the {side}'s adaptor gives no {match.feature} of layer "
            f"{', '.join(map(str, absent))}: it gives {has}; have the model return them "
            "(output_hidden_states, or output_attentions and attn_implementation='eager')"
        )
    return [found[layer] for layer in layers] if several else found[layers]


class CustomMatch:
    """A match of any two modules.

    Args:
        module_T: the teacher's.
        module_S: the student's.
        weight: of the loss.
        loss: (output_S, output_T, mask_S, mask_T) → one number.
        proj_func: applied to the student's output; a module learns with the student.
        proj_group: options of its optimizer group.

    Raises:
        ConfigError: something that is no module, or a loss that can't be called.
    """

    def __init__(
        self,
        module_T: nn.Module,
        module_S: nn.Module,
        weight: float,
        loss: Callable[..., Tensor],
        proj_func: Callable[..., Any] | None = None,
        proj_group: Mapping[str, Any] | None = None,
    ):
        for name, module in (("module_T", module_T), ("module_S", module_S)):
            if not isinstance(module, nn.Module):
                raise ConfigError(
                    f"CustomMatch: {name}: expected a torch.nn.Module of the model, got "
                    f"{type(module).__name__}; raybrew.CustomMatch takes names"
                )
        if not callable(loss):
            raise ConfigError(f"CustomMatch: loss: expected a function, got {loss!r}")
        self.module_T, self.module_S = module_T, module_S
        self.weight, self.loss = weight, loss
        self.proj_func, self.proj_group = proj_func, dict(proj_group or {})

    @classmethod
    def from_dict(cls, dict_object: Mapping[str, Any]) -> Self:
        """Make a match from a dict of its arguments."""
        return cls(**dict_object)

    def to_dict(self) -> dict[str, Any]:
        """Return its arguments."""
        return dict(vars(self))

    @contextmanager
    def outputs(self) -> Iterator[dict[str, Any]]:
        """Collect what the modules return in the forward passes of a while."""
        found: dict[str, Any] = {}

        def keep(side: str) -> Callable[..., None]:
            return lambda module, given, output: found.update({side: output})

        handles = [
            self.module_T.register_forward_hook(keep("teacher")),
            self.module_S.register_forward_hook(keep("student")),
        ]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def compare(
        self, outputs: Mapping[str, Any], mask_S: Tensor | None, mask_T: Tensor | None
    ) -> Tensor:
        """Return the loss of the modules' outputs, given the real tokens of each side.

        Raises:
            ConfigError: a module that wasn't called, or a loss that isn't one number.
        """
        for side, module in (("teacher", self.module_T), ("student", self.module_S)):
            if side not in outputs:
                raise ConfigError(
                    f"CustomMatch: the forward pass didn't call {type(module).__name__}: give "
                    "modules of the models that the distiller was given"
                )
        student = outputs["student"]
        projected = student if self.proj_func is None else self.proj_func(student)
        value = self.loss(projected, outputs["teacher"], mask_S, mask_T)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"CustomMatch: the loss returned {got}; expected one number")
        return value.reshape(())


class no_op:
    """A TensorBoard writer that writes nothing."""

    @staticmethod
    def add_scalar(*args: Any, **kwargs: Any) -> None:
        """Write nothing."""


def bare(model: nn.Module) -> nn.Module:
    """Return the model inside of its wrapper."""
    wrapped = isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel)
    return model.module if wrapped else model
