"""A teacher's features as a payload: reduced, without padding, in the label's precision."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raybrew.labels.payload import DTYPES, Payload, Signal, to_storage
from raybrew.losses.features.ragged import pack
from raybrew.losses.match_spec import MatchSpec
from raybrew.models.custom_match import CustomMatch

__all__ = ["pack_features"]


def pack_features(
    signal: Signal, features: Sequence[Tensor], mask: Tensor | None
) -> tuple[Payload, int | None]:
    """Reduce a teacher's features to what the signal asks for.

    Args:
        signal: with a match for its recipe.
        features: of a `FeatureReader`, one a layer.
        mask: (b, L), real tokens.

    Returns:
        b rows: of one width where no axis grows with the tokens, else ragged; and the first of
        them with NaN or infinity in it, None if there is none.
    """
    recipe: MatchSpec | CustomMatch = signal.recipe
    if isinstance(recipe, CustomMatch):
        axes, statistic = recipe.axes, features[0]
        length = statistic.shape[1 + axes.index("token")] if "token" in axes else 1
        keep = statistic.new_ones(len(statistic), length) if mask is None else mask
        ragged = pack(statistic, keep != 0, axes)
    else:
        loss = recipe.build_loss()
        axes = loss.axes
        ragged = loss.pack(loss.teacher_statistic(features, mask), mask)
    values, offsets = ragged.values.to(DTYPES[signal.dtype][0]), ragged.offsets
    unusable = _first_unusable_row(values, offsets, signal)
    kept = to_storage(values, signal.dtype)
    if "token" not in axes:
        return Payload(kept.reshape(len(offsets) - 1, -1)), unusable
    return Payload(kept, offsets.cpu().numpy().astype(np.int64)), unusable


def _first_unusable_row(values: Tensor, offsets: Tensor, signal: Signal) -> int | None:
    """Look for NaN and infinity where the values are, which is quicker than on the host.

    Raw attention scores may hold −∞ where a key may not be looked at.
    """
    usable = values.isfinite()
    if getattr(signal.recipe, "feature", None) == "attention":
        usable |= values.isneginf()
    if bool(usable.all()):
        return None
    first = usable.logical_not().nonzero()[0]
    return int(torch.searchsorted(offsets.to(first.device), first, right=True)) - 1
