"""Random features and masks for the tests of match losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raybrew.losses.match_loss import FeatureSizes, MatchLoss, Partial, Ragged
from raybrew.matches.match_losses import MATCH_LOSSES, match_loss

BATCH, LENGTH, HEADS = 4, 6, 2
STUDENT_SIZE, TEACHER_SIZE = 6, 8

# A loss with options of its own, tested beside the plain one.
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "minilmv2_relation": ("minilmv2_relation", {"num_relation_heads": 2}),
    "mmd of length": ("mmd", {"divisor": "length"}),
    "fsp of gram": ("fsp", {"payload": "gram"}),
    "attention_ce of all keys": ("attention_ce", {"keys": "all"}),
    "attention_ce_mean of all keys": ("attention_ce_mean", {"keys": "all"}),
    "rkd_distance of first": ("rkd_distance", {"pooling": "first"}),
}
ALL_LOSSES = sorted({*MATCH_LOSSES, *VARIANTS} - {"gram", "nst"})
# TextBrewer's own dependence on the padding, by options that jobs refuse.
NEEDS_SAME_PADDING = {
    "mmd of length",
    "attention_ce of all keys",
    "attention_ce_mean of all keys",
}
BATCH_LEVEL = {"rkd_distance", "rkd_angle", "sp", "cka", "rkd_distance of first", "emd"}

# Name → (student layers, teacher layers) of a test.
LAYERS = {
    **dict.fromkeys(["fsp", "gram", "mmd", "nst", "mmd of length", "fsp of gram"], (2, 2)),
    "emd": (2, 3),
}
SAME_SIZE = {"hidden_mse", "cos", "pkd", "fsp", "gram", "emd", "fsp of gram"}
PROBABILITIES = {"minilm_attention"}

RAGGED = torch.tensor(
    [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
)
WITH_HOLES = torch.tensor(
    [[1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 1], [1, 1, 0, 1, 0, 0]]
)
WITH_EMPTY_ROW = torch.tensor(
    [[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
)
MASKS = {"none": None, "ragged": RAGGED, "holes": WITH_HOLES}


@dataclass
class Pair:
    """Features of both sides and the sizes of the teacher's."""

    student: list[Tensor]
    teacher: list[Tensor]
    sizes: FeatureSizes


def make_pair(
    name: str,
    seed: int = 0,
    batch: int = BATCH,
    length: int = LENGTH,
    dtype: torch.dtype = torch.float64,
    probabilities: bool | None = None,
    mask: Tensor | None = None,
) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    feature = build(name).features[0]
    num_student, num_teacher = LAYERS.get(name, (1, 1))
    student_size = TEACHER_SIZE if name in SAME_SIZE else STUDENT_SIZE

    def draw(size: int) -> Tensor:
        if feature == "attention":
            shape = (batch, HEADS, length, length)
        elif feature == "hidden":
            shape = (batch, length, size)
        else:
            shape = (batch, HEADS, length, size // HEADS)
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name in PROBABILITIES or probabilities:
            values = as_probabilities(values, mask)
        return values.to(dtype)

    return Pair(
        student=[draw(student_size).requires_grad_() for _ in range(num_student)],
        teacher=[draw(TEACHER_SIZE) for _ in range(num_teacher)],
        sizes=FeatureSizes(TEACHER_SIZE, HEADS, num_teacher),
    )


def as_probabilities(scores: Tensor, mask: Tensor | None) -> Tensor:
    """What transformers gives: a softmax over real keys, exactly 0 at padded ones."""
    if mask is None:
        return scores.softmax(-1)
    padded_key = (mask == 0)[:, None, None, :] & (mask != 0).any(1)[:, None, None, None]
    return scores.masked_fill(padded_key, float("-inf")).softmax(-1)


def build(name: str) -> MatchLoss:
    return match_loss(*VARIANTS.get(name, (name, None)))


def direct(name: str, pair: Pair, mask: Tensor | None) -> Partial:
    loss = build(name)
    return loss.loss(pair.student, mask, loss.teacher_statistic(pair.teacher, mask))


def mean(partial: Partial) -> Tensor:
    return partial.numerator.sum() / partial.denominator.sum()


def gradients(value: Tensor, features: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(value, features))


def grow(feature: Tensor, name: str, extra: int, fill: float = 0.0) -> Tensor:
    """Pad every token axis on the right by `extra`."""
    token_axes = 2 if build(name).features[0] == "attention" else 1
    if token_axes == 2:
        return torch.nn.functional.pad(feature, (0, extra, 0, extra), value=fill)
    return torch.nn.functional.pad(feature, (0, 0, 0, extra), value=fill)


def split(ragged: Ragged) -> list[Tensor]:
    """One flat view per example."""
    return list(ragged.values.split(ragged.offsets.diff().tolist()))


def join(rows: Sequence[Tensor]) -> Ragged:
    """Flat rows, one after another."""
    sizes = torch.tensor([row.numel() for row in rows])
    return Ragged(torch.cat(list(rows)), torch.nn.functional.pad(sizes.cumsum(dim=0), (1, 0)))
