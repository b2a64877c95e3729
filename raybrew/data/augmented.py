"""A data set with changed copies of its rows: new text, new content keys, labels of its own.

    rows ──► for each round: [the rows themselves], copies with their changes ──► one data set

A copy is a function of (seed, round, number of the copy, the row's texts): not of where the row
stands, so that other data sets with the row have the same copies, and find their labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from datasets import Dataset, Features, concatenate_datasets

from raybrew.config.augmentation import Augmentation
from raybrew.data.augmentation import OPERATIONS
from raybrew.errors import DataError

__all__ = ["augmented", "changed"]

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
