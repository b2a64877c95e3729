"""The answers to questions about passages, each found where the data says it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from raybrew.data.columns import read_column
from raybrew.errors import DataError

__all__ = ["Answer", "read_answers"]


@dataclass(frozen=True)
class Answer:
    """A piece of a passage.

    Args:
        text: as it stands there.
        start: where, in characters.
    """

    text: str
    start: int


def read_answers(
    dataset: Dataset, column: str, passages: Sequence[str], what: str
) -> list[list[Answer] | None]:
    """Read a column of answers.

    Args:
        dataset: the split.
        column: `{text: [...], answer_start: [...]}` in each row, or a list of
            `{text, answer_start}`; empty where there is no answer, null where it isn't known.
        passages: of each row.
        what: the job's field of the split, for messages.

    Raises:
        DataError: the column is missing, isn't of that form, or an answer isn't in its passage;
            names the row.
    """
    values = read_column(dataset, column, what)
    return [
        None if value is None else _answers(value, passage, f"{what}: row {row}", column)
        for row, (value, passage) in enumerate(zip(values, passages, strict=True))
    ]


def _answers(value: Any, passage: str, where: str, column: str) -> list[Answer]:
    try:
        if isinstance(value, list):
            pairs = [(each["text"], each["answer_start"]) for each in value]
        else:
            pairs = list(zip(value["text"], value["answer_start"], strict=True))
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{where}: expected {{text: [...], answer_start: [...]}} in {column!r}, got {value!r}"
        ) from None
    for text, start in pairs:
        got = passage[start : start + len(text)] if isinstance(start, int) else None
        if got != text or not text:
            raise DataError(
                f"{where}: expected the answer {text!r} at character {start} of its passage, got "
                f"{got!r}"
            )
    return [Answer(text, start) for text, start in pairs]
