"""A teacher's features as a payload: reduced, without padding, in the label's precision."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from raybrew.labels.payload import Payload, Signal, to_storage
from raybrew.losses.features.ragged import Ragged, pack
from raybrew.losses.match_spec import MatchSpec
from raybrew.models.custom_match import CustomMatch

__all__ = ["first_unusable_row", "pack_features"]


def pack_features(signal: Signal, features: Sequence[Tensor], mask: Tensor | None) -> Payload:
    """Reduce a teacher's features to what the signal asks for.

    Args:
        signal: with a match for its recipe.
        features: of a `FeatureReader`, one a layer.
        mask: (b, L), real tokens.

    Returns:
        b rows: of one width where no axis grows with the tokens, else ragged.
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
    return _as_payload(ragged, signal.dtype, ragged_rows="token" in axes)


def first_unusable_row(payload: Payload, signal: Signal) -> int | None:
    """Return the first row with NaN or infinity in it; None if there is none.

    Raw attention scores may hold −∞ where a key may not be looked at.
    """
    values = _as_floats(payload.values, signal.dtype)
    unusable = ~np.isfinite(values)
    if getattr(signal.recipe, "feature", None) == "attention":
        unusable &= ~np.isneginf(values)
    if not unusable.any():
        return None
    if payload.offsets is None:
        return int(unusable.any(axis=1).argmax())
    return int(np.searchsorted(payload.offsets, int(unusable.argmax()), side="right")) - 1


def _as_payload(ragged: Ragged, dtype: str, *, ragged_rows: bool) -> Payload:
    values = to_storage(ragged.values, dtype)
    offsets = ragged.offsets.cpu().numpy().astype(np.int64)
    rows = len(offsets) - 1
    return Payload(values, offsets) if ragged_rows else Payload(values.reshape(rows, -1))


def _as_floats(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "bfloat16":
        return values
    # The bits of bfloat16 are the upper half of a float32's.
    return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
