"""Augmentation by TextBrewer's names: changed copies of rows are appended to a training split.

    rows ──► for each round: [the rows themselves], changed copies ──► one data set

    tokens ──► masking ──► deleting ──► n_gram_sampling ──► short_disorder ──► long_disorder

A copy has new text, new content keys and labels of its own. It is a function of (seed, round,
number of the copy, the row's texts), not of the row's place, so that the same row of another data
set has the same copies, and finds their labels.

Tokens may be words, characters, ids, or positions, by which labels follow their words. The changes
write to nothing; their result is a function of the tokens and the generator's state alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import xxhash
from datasets import Dataset, Features, concatenate_datasets

from raybrew.config.task import Augmentation
from raybrew.errors import DataError

T = TypeVar("T")

# Of the tokens from here on, which one comes first, second, third: a, ba, cba, cab, bca.
ORDERS = ((0,), (1, 0), (2, 1, 0), (2, 0, 1), (1, 2, 0))
_MASKED = -1


def masking(
    tokens: Sequence[T], generator: np.random.Generator, *, p: float = 0.1, mask: T
) -> list[T]:
    """Replace each token by the mask with probability p.

    Args:
        tokens: any.
        generator: drawn from once a token.
        p: in [0, 1].
        mask: stands for a token.

    Returns:
        As many tokens.
    """
    drawn = generator.random(len(tokens))
    return [mask if chance < p else token for token, chance in zip(tokens, drawn, strict=True)]


def deleting(tokens: Sequence[T], generator: np.random.Generator, *, p: float = 0.1) -> list[T]:
    """Leave each token out with probability p; there may be none left."""
    remaining = generator.binomial(1, 1 - p, len(tokens))
    return [token for token, remains in zip(tokens, remaining, strict=True) if remains]


def n_gram_sampling(
    tokens: Sequence[T],
    generator: np.random.Generator,
    *,
    p_ng: Sequence[float] = (0.2,) * 5,
    l_ng: Sequence[int] = (1, 2, 3, 4, 5),
) -> list[T]:
    """Keep one span, of a length drawn from `l_ng` with probabilities `p_ng`, from anywhere.

    A list that is shorter than the span is kept whole.
    """
    length = int(generator.choice(l_ng, p=p_ng))
    if length >= len(tokens):
        return list(tokens)
    start = int(generator.integers(0, len(tokens) - length + 1))
    return list(tokens[start : start + length])


def short_disorder(
    tokens: Sequence[T],
    generator: np.random.Generator,
    *,
    p: Sequence[float] = (0.9, 0.1, 0.0, 0.0, 0.0),
) -> list[T]:
    """From left to right, put the next three tokens abc in another order, and go on behind them.

    Args:
        tokens: any.
        generator: drawn from once a place.
        p: probabilities of abc (go on by one), bac (go on by two), cba, cab and bca (by three). The
            last two tokens change places in any of the last four cases.

    Returns:
        The same tokens.
    """
    found, place = list(tokens), 0
    while place < len(found) - 1:
        case = int(generator.choice(len(ORDERS), p=p))
        if case and place == len(found) - 2:
            case = 1
        order = ORDERS[case]
        span = found[place : place + len(order)]
        found[place : place + len(order)] = [span[source] for source in order]
        place += len(order)
    return found


def long_disorder(
    tokens: Sequence[T], generator: np.random.Generator, *, p: float = 0.1, length: float = 20
) -> list[T]:
    """From left to right, let the halves of the next span change places with probability p.

    Args:
        tokens: any.
        generator: drawn from once a place.
        p: in [0, 1]; after an unchanged span the next one begins one token later, after a changed
            one behind it.
        length: tokens of a span, rounded up to an even number; up to 1 it is a share of all.

    Returns:
        The same tokens.
    """
    found, place = list(tokens), 0
    size = (int(length if length > 1 else length * len(found)) + 1) // 2 * 2
    while size and place <= len(found) - size:
        if generator.random() < p:
            middle, end = place + size // 2, place + size
            found[place:end] = found[middle:end] + found[place:middle]
            place = end
        else:
            place += 1
    return found


OPERATIONS: Mapping[str, Callable[..., list[Any]]] = {
    "masking": masking,
    "deleting": deleting,
    "n_gram_sampling": n_gram_sampling,
    "short_disorder": short_disorder,
    "long_disorder": long_disorder,
}


def augmented(
    dataset: Dataset,
    augmentation: Augmentation,
    *,
    texts: Sequence[str],
    label: str | None,
    what: str,
) -> Dataset:
    """Append the changed copies of a training split.

    Args:
        dataset: N rows.
        augmentation: which.
        texts: columns that are changed, of texts or of lists of words.
        label: column of the label. A list of the words' labels follows its words; others are kept
            or dropped as configured.
        what: the job's field, for messages.

    Returns:
        `rounds` blocks of as many rows: N unchanged, if they are read, and N for each copy.

    Raises:
        DataError: a column to change that holds neither texts nor lists of words. A missing one is
            left to the function that reads it.
    """
    if not {*texts, label} - {None} <= set(dataset.column_names):
        return dataset
    blocks = []
    for number in range(augmentation.rounds):
        if augmentation.originals:
            blocks.append(dataset)
        for copy in range(augmentation.copies):
            blocks.append(_copy(dataset, augmentation, (number, copy), texts, label, what))
    return concatenate_datasets(blocks)


def _copy(
    dataset: Dataset,
    augmentation: Augmentation,
    number: tuple[int, int],
    texts: Sequence[str],
    label: str | None,
    what: str,
) -> Dataset:
    columns: dict[str, list[Any]] = {name: dataset[name][:] for name in texts}
    labels = None if label is None else list(dataset[label][:])
    for row in range(len(dataset)):
        content = "\x00".join(repr(columns[name][row]) for name in texts)
        digest = xxhash.xxh3_64_intdigest(content.encode())
        generator = np.random.default_rng([augmentation.seed, *number, digest])
        positions: list[int] = []
        for name in texts:
            columns[name][row], positions = _changed_value(
                columns[name][row], augmentation, generator, f"{what}: row {row}: column {name!r}"
            )
        if labels is not None:
            by_word = isinstance(columns[texts[-1]][row], list)
            labels[row] = _label(labels[row], positions, augmentation, by_word)
    replaced = {**columns, **({} if label is None else {label: labels})}
    features = Features({name: dataset.features[name] for name in replaced})
    found = Dataset.from_dict(replaced, features=features)
    others = [name for name in dataset.column_names if name not in replaced]
    if others:
        found = concatenate_datasets([found, dataset.select_columns(others)], axis=1)
    return found.select_columns(dataset.column_names)


def _changed_value(
    value: Any, augmentation: Augmentation, generator: np.random.Generator, what: str
) -> tuple[Any, list[int]]:
    is_text = isinstance(value, str)
    if not is_text and not isinstance(value, list):
        raise DataError(
            f"{what}: expected a text or a list of words to change, got {type(value).__name__}"
        )
    separator = "" if augmentation.unit == "character" else " "
    tokens = value if not is_text else list(value) if not separator else value.split()
    positions = _changed_positions(len(tokens), augmentation, generator)
    found = [tokens[at] if at >= 0 else augmentation.mask for at in positions]
    return (separator.join(found) if is_text else found), positions


def _changed_positions(
    count: int, augmentation: Augmentation, generator: np.random.Generator
) -> list[int]:
    """Apply the changes to the positions of `count` tokens.

    Returns:
        Positions, negative where the mask stands for the token at −1 − position. Where the changes
        would leave nothing, all positions as they were.
    """
    positions = list(range(count))
    for operation in augmentation.operations:
        change = OPERATIONS[operation.name]
        if operation.name != "masking":
            positions = change(positions, generator, **operation.options)
            continue
        # A masked token keeps its place, so that its label stays with it.
        hidden = change(positions, generator, **operation.options, mask=None)
        positions = [
            old if new is not None or old < 0 else _MASKED - old
            for old, new in zip(positions, hidden, strict=True)
        ]
    return positions or list(range(count))


def _label(value: Any, positions: Sequence[int], augmentation: Augmentation, by_word: bool) -> Any:
    if not augmentation.hard_labels:
        return None
    if by_word and isinstance(value, list):
        return [value[at if at >= 0 else _MASKED - at] for at in positions]
    return value
