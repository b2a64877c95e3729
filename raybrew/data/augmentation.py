"""Augmentation by TextBrewer's names: changed copies of rows are appended to a training split."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import xxhash
from datasets import Dataset, Features, concatenate_datasets

from raybrew.config.task import Augmentation
from raybrew.errors import DataError

# Changes of lists of tokens, by TextBrewer's names: what an augmented copy of a row reads.
#
#     tokens ──► masking ──► deleting ──► n_gram_sampling ──► short_disorder ──► long_disorder
#
# Tokens may be words, characters, ids, or positions, by which labels follow their words. Nothing is
# written to; what comes out is a function of the tokens and the generator's state alone.

T = TypeVar("T")

# Of the tokens from here on, which one comes first, second, third: a, ba, cba, cab, bca.
ORDERS = ((0,), (1, 0), (2, 1, 0), (2, 0, 1), (1, 2, 0))


def masking(
    tokens: Sequence[T], generator: np.random.Generator, *, p: float = 0.1, mask: T
) -> list[T]:
    """Replace each token by the mask with chance p.

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
    """Leave each token out with chance p; there may be none left."""
    kept = generator.binomial(1, 1 - p, len(tokens))
    return [token for token, keep in zip(tokens, kept, strict=True) if keep]


def n_gram_sampling(
    tokens: Sequence[T],
    generator: np.random.Generator,
    *,
    p_ng: Sequence[float] = (0.2,) * 5,
    l_ng: Sequence[int] = (1, 2, 3, 4, 5),
) -> list[T]:
    """Keep one span, of a length drawn from `l_ng` with chances `p_ng`, from anywhere.

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
        p: chances of abc (go on by one), bac (go on by two), cba, cab and bca (by three). The last
            two tokens change places in any of the last four cases.

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
    """From left to right, let the halves of the next span change places with chance p.

    Args:
        tokens: any.
        generator: drawn from once a place.
        p: in [0, 1]; a span that stays as it is is left by one token, one that changes by all.
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


# A data set with changed copies of its rows: new text, new content keys, labels of its own.
#
#     rows ──► for each round: [the rows themselves], copies with their changes ──► one data set
#
# A copy is a function of (seed, round, number of the copy, the row's texts): not of where the row
# stands, so that other data sets with the row have the same copies, and find their labels.

_MASKED = -1


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
        DataError: a column to change that holds neither texts nor lists of words. One that is
            missing is left to whoever reads it.
    """
    if not {*texts, label} - {None} <= set(dataset.column_names):
        return dataset  # whoever reads the column says that it is missing
    blocks = []
    for number in range(augmentation.rounds):
        if augmentation.originals:
            blocks.append(dataset)
        for copy in range(augmentation.copies):
            blocks.append(_copy(dataset, augmentation, (number, copy), texts, label, what))
    return concatenate_datasets(blocks)


def changed(
    tokens: Sequence[str], augmentation: Augmentation, generator: np.random.Generator
) -> list[int]:
    """Apply the changes to a list of tokens.

    Args:
        tokens: any.
        augmentation: which changes.
        generator: what they draw from.

    Returns:
        Positions in `tokens`, -1 or less where the mask stands for the token at −1 − position. A
        list of which nothing would be left stays as it was.
    """
    positions = list(range(len(tokens)))
    for operation in augmentation.operations:
        if operation.name == "masking":
            # A masked token keeps its place, so that its label stays with it.
            hidden = OPERATIONS["masking"](positions, generator, **operation.options, mask=None)
            positions = [
                old if new is not None or old < 0 else _MASKED - old
                for old, new in zip(positions, hidden, strict=True)
            ]
        else:
            function = OPERATIONS[operation.name]
            positions = function(positions, generator, **operation.options)
    return positions or list(range(len(tokens)))


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
        seed = _seed(augmentation.seed, number, [columns[name][row] for name in texts])
        generator = np.random.default_rng(seed)
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
    positions = changed(tokens, augmentation, generator)
    found = [tokens[at] if at >= 0 else augmentation.mask for at in positions]
    return (separator.join(found) if is_text else found), positions


def _label(value: Any, positions: Sequence[int], augmentation: Augmentation, by_word: bool) -> Any:
    if not augmentation.hard_labels:
        return None
    if by_word and isinstance(value, list):
        return [value[at if at >= 0 else _MASKED - at] for at in positions]
    return value


def _seed(seed: int, number: tuple[int, int], values: Sequence[Any]) -> list[int]:
    digest = xxhash.xxh3_64_intdigest("\x00".join(map(repr, values)).encode())
    return [seed, *number, digest]
