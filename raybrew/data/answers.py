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
        start: where, in characters; -1 where it was looked for and isn't in the passage.
        moved: whether it was found elsewhere than the data says.
    """

    text: str
    start: int
    moved: bool = False


def read_answers(
    dataset: Dataset, column: str, passages: Sequence[str], what: str, *, search: bool = False
) -> list[list[Answer] | None]:
    """Read a column of answers.

    Args:
        dataset: the split.
        column: `{text: [...], answer_start: [...]}` in each row, or a list of
            `{text, answer_start}`; empty where there is no answer, null where it isn't known.
        passages: of each row.
        what: the job's field of the split, for messages.
        search: whether an answer that isn't where the data says is looked for in its passage.

    Raises:
        DataError: the column is missing, isn't of that form, or an answer isn't where the data
            says; names the row.
    """
    values = read_column(dataset, column, what)
    return [
        None if value is None else _answers(value, passage, f"{what}: row {row}", column, search)
        for row, (value, passage) in enumerate(zip(values, passages, strict=True))
    ]


def _answers(value: Any, passage: str, where: str, column: str, search: bool) -> list[Answer]:
    try:
        if isinstance(value, list):
            pairs = [(each["text"], each["answer_start"]) for each in value]
        else:
            pairs = list(zip(value["text"], value["answer_start"], strict=True))
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{where}: expected {{text: [...], answer_start: [...]}} in {column!r}, got {value!r}"
        ) from None
    answers = []
    for text, start in pairs:
        if not isinstance(text, str):
            raise DataError(f"{where}: expected answers as text in {column!r}, got {text!r}")
        known = isinstance(start, int) and not isinstance(start, bool)
        # A negative one would count from the end.
        got = passage[start : start + len(text)] if known and start >= 0 else None
        if got == text and text:
            answers.append(Answer(text, start))
        elif search and known and text:
            answers.append(Answer(text, _nearest(text, start, passage), moved=True))
        else:
            raise DataError(
                f"{where}: expected the answer {text!r} at character {start} of its passage, got "
                f"{got!r}; `answers_at: search` of the task looks for it"
            )
    return answers


def _nearest(text: str, start: int, passage: str) -> int:
    """Return the place of the text that is nearest to `start`; -1 where it isn't in the passage."""
    before, after = (
        passage.rfind(text, 0, max(start, 0) + len(text)),
        passage.find(text, max(start, 0)),
    )
    found = [place for place in (before, after) if place >= 0]
    return min(found, key=lambda place: abs(place - start), default=-1)
