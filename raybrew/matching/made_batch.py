"""Whether a user's adaptor gives what matches compare: tried on a made batch, without weights.

    2 examples of 4 tokens ──► model on the meta device ──► shapes ──► zeros ──► adaptor ──► matches

Built-in adaptors are known; a user's is code that only a call tells the results of. It sees
tensors of the right shapes in memory, so it may compute with them as it does in training.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedConfig

from raybrew.errors import ConfigError
from raybrew.kinds import Kind
from raybrew.losses.match_spec import MatchSpec
from raybrew.matching.reader import FeatureReader, Side, needs_attention, use_eager_attention
from raybrew.models.adaptors import Adaptor
from raybrew.models.custom_match import CustomMatch
from raybrew.models.pretrained import BUILD_ERRORS, first_line, meta_model

__all__ = ["check_adaptor"]

_EXAMPLES, _TOKENS = 2, 4

_log = logging.getLogger(__name__)


def check_adaptor(
    matches: Sequence[MatchSpec | CustomMatch],
    adaptor: Adaptor,
    kind: Kind,
    config: PreTrainedConfig,
    side: Side,
    num_labels: int,
) -> None:
    """Refuse matches of what an adaptor doesn't give.

    A model that can't run without weights, or an adaptor that fails on made values, shows nothing
    either way: the first batch does.

    Args:
        matches: those that look at this model.
        adaptor: of the user.
        kind: of the task.
        config: of the model.
        side: which of the two the model is.
        num_labels: logits of a row.

    Raises:
        ConfigError: names the match, what it needs and what there is.
    """
    if not matches:
        return
    model = meta_model(kind.model_class, config, side)
    if needs_attention(matches):
        use_eager_attention(model)
    reader = FeatureReader(model, adaptor, matches, side)
    batch = _batch(kind, side, num_labels)
    try:
        outputs: Any = model.eval()(input_ids=batch["input_ids"].to("meta"), **reader.flags)
        reader.read(batch, tree_map_only(Tensor, _in_memory, outputs))
    except ConfigError as error:
        raise ConfigError(f"distillation.matches: {error}") from None
    except BUILD_ERRORS as error:
        _log.info(
            "the %s's adaptor can't be tried on a made batch (%s): its first batch will show what "
            "it gives",
            side,
            first_line(error),
        )


def _in_memory(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _batch(kind: Kind, side: Side, num_labels: int) -> Mapping[str, Tensor]:
    shape = (_EXAMPLES, _TOKENS)
    mask = torch.ones(shape, dtype=torch.int64)
    mask[-1, -1] = 0  # padded, as batches are
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.int64),
        "attention_mask": mask,
        "token_type_ids": torch.zeros(shape, dtype=torch.int64),
    }
    if side == "student":  # teachers aren't told the labels
        batch["labels"] = _labels(kind, num_labels)
    return batch


def _labels(kind: Kind, num_labels: int) -> Tensor:
    if kind.layout == "token":
        return torch.zeros(_EXAMPLES, _TOKENS, dtype=torch.int64)
    if kind.layout == "position":
        return torch.zeros(_EXAMPLES, 2, dtype=torch.int64)
    if kind.exclusive:
        return torch.zeros(_EXAMPLES, dtype=torch.int64)
    return torch.zeros(_EXAMPLES, num_labels)
