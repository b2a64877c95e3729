"""The columns of a data set: texts, words, answers, teachers' logits; each row is checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xxhash
from datasets import Dataset

from raybrew.config import Task
from raybrew.data.encoding import EncodedView
from raybrew.errors import DataError, did_you_mean

_SHOWN = 80


@dataclass(frozen=True)
class SuppliedLogits:
    """Logits of N examples that the data has already, in place of a teacher's model.

    The values are their own key: rows of equal values share a label, and rows that read the same to
    the student may have different ones.

    Args:
        values: float32 (R, C), one example after another.
        lengths: int64 (N,), rows of `values` of each example; None for one each.
        keys: uint64 (N, 2), hashes of each example's values.
    """

    values: np.ndarray
    lengths: np.ndarray | None
    keys: np.ndarray

    def view(self) -> EncodedView:
        """Return the examples as labels are looked up for: keys, and no tokens to read."""
        offsets = np.zeros(len(self.keys) + 1, np.int64)
        return EncodedView(np.empty(0, np.int32), None, offsets, self.keys)


@dataclass(frozen=True)
class Rows:
    """The rows of a split as a task type reads them.

    Args:
        texts: of each row: a text, or the list of its words.
        pairs: second texts; None for single ones.
        labels: what is to be learnt of each row, in the form of the task type.
        supplied: by teacher, logits that the data has already.
        what: the job's field of the split, for messages of what encodes it.
    """

    texts: Sequence[Any]
    pairs: Sequence[str] | None = None
    labels: Any = None
    supplied: Mapping[str, SuppliedLogits] = field(default_factory=dict)
    what: str = ""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: np.ndarray) -> "Rows":
        """Return some of the rows, those with labels in an array and without supplied logits.

        Args:
            rows: int64 (n,), which.
        """
        assert not self.supplied, "rows of a job without teachers"
        texts = [self.texts[row] for row in rows]
        pairs = None if self.pairs is None else [self.pairs[row] for row in rows]
        return replace(self, texts=texts, pairs=pairs, labels=self.labels[rows])


def read_rows(task: Task, dataset: Dataset, what: str, labels: Any = None) -> Rows:
    """Read the task's text columns.

    Args:
        task: names them.
        dataset: the split.
        what: the job's field of it, for messages.
        labels: of its rows.

    Raises:
        DataError: a column is missing, or a row of it holds no text.
    """
    texts = read_texts(dataset, task.text, what)
    pairs = None if task.text_pair is None else read_texts(dataset, task.text_pair, what)
    return Rows(texts, pairs, labels)


def read_routes(
    task: Task, dataset: Dataset, teachers: Sequence[str], what: str
) -> np.ndarray | None:
    """Read the column that names each row's teacher.

    Args:
        task: names the column.
        dataset: the split.
        teachers: names of the task's teachers.
        what: the job's field of the split, for messages.

    Returns:
        int64 (N,), index among the teachers; None if the task names no column.

    Raises:
        DataError: the column is missing, or a row names no teacher of the task.
    """
    if task.teacher_column is None or not teachers:
        return None
    index = {name: number for number, name in enumerate(teachers)}
    expected = f"a teacher of the task ({', '.join(teachers)})"
    values = _read_checked(
        dataset, task.teacher_column, what, expected, lambda v: isinstance(v, str) and v in index
    )
    return np.array([index[value] for value in values], np.int64)


def read_column(dataset: Dataset, name: str, what: str) -> list[Any]:
    """Return a column's values.

    Raises:
        DataError: it is missing, and names the nearest ones, or its texts aren't UTF-8.
    """
    if name not in dataset.column_names:
        names = dataset.column_names
        raise DataError(
            f"{what}: expected a column {name!r}, got {', '.join(names)}{did_you_mean(name, names)}"
        )
    try:
        return dataset[name][:]
    except UnicodeDecodeError as error:
        raise DataError(f"{what}: expected text in UTF-8 in {name!r}, got: {error}") from error


def read_texts(dataset: Dataset, name: str, what: str) -> list[str]:
    """Return a column of texts.

    Raises:
        DataError: it is missing, or a row holds no text.
    """
    return _read_checked(dataset, name, what, "text", lambda value: isinstance(value, str))


def read_words(dataset: Dataset, name: str, what: str) -> list[list[str]]:
    """Return a column of lists of words.

    Raises:
        DataError: it is missing, or a row holds no list of texts.
    """

    def are_words(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(word, str) for word in value)

    return _read_checked(dataset, name, what, "a list of words", are_words)


def read_lists(dataset: Dataset, name: str, what: str, noun: str) -> list[list[Any] | None]:
    """Return a column of lists, where null stands for an unknown one.

    Args:
        dataset: the split.
        name: of the column.
        what: the job's field of the split, for messages.
        noun: what the lists hold, for messages.

    Raises:
        DataError: it is missing, or a row holds something else.
    """
    return _read_checked(
        dataset, name, what, f"a list of {noun}", lambda v: v is None or isinstance(v, list)
    )


def _read_checked(
    dataset: Dataset, name: str, what: str, expected: str, fits: Callable[[Any], bool]
) -> list[Any]:
    values = read_column(dataset, name, what)
    for row, value in enumerate(values):
        if not fits(value):
            raise DataError(f"{what}: row {row}: expected {expected} in {name!r}, got {value!r}")
    return values


def read_supplied(
    column: Sequence[Any], width: int, words: Sequence[int] | None, *, name: str, what: str
) -> SuppliedLogits:
    """Check a column of logits.

    Args:
        column: of each row a list of numbers, a number where there is one class, or a list of
            those, one a word.
        width: classes.
        words: of each row, for classes of words; None where a row has one list.
        name: of the column, for messages.
        what: the job's field of the split, for messages.

    Raises:
        DataError: a row that holds something else; names it.
    """
    parts = []
    for row, value in enumerate(column):
        shape = (width,) if words is None else (words[row], width)
        numbers = _numbers(value, shape)
        if numbers is None:
            each = "" if words is None else f" for each of the {words[row]} words"
            shown = repr(value)
            shown = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"
            raise DataError(
                f"{what}: row {row}: expected {width} finite numbers in {name!r}{each}, the logits "
                f"of the task's classes, got {shown}"
            )
        parts.append(numbers)
    keys = np.empty((len(parts), 2), np.uint64)
    for row, part in enumerate(parts):
        # The shape stands in front: two words of three classes are not three of two.
        shape = np.array((part.ndim, *part.shape), "<i8").tobytes()
        digest = xxhash.xxh3_128(shape + part.astype("<f4").tobytes())
        keys[row] = np.frombuffer(digest.digest(), np.uint64)
    values = np.concatenate([part.reshape(-1, width) for part in parts])
    return SuppliedLogits(values, None if words is None else np.array(words, np.int64), keys)


def column_fingerprint(*splits: SuppliedLogits) -> str:
    """Return what labels of a column are filed under: a hash of all its values.

    Returns:
        32 hexadecimal digits.
    """
    digest = xxhash.xxh3_128(b"supplied logits")
    for split in splits:
        digest.update(np.int64(len(split.keys)).tobytes() + split.keys.astype("<u8").tobytes())
    return digest.hexdigest()


def _numbers(value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return a value as float32 of this shape; None if it is none."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return None
    if array.size and array.dtype.kind not in "fiu":
        return None
    one = shape == (1,) and array.shape == ()
    if array.shape != shape and not one and not array.size == 0 == shape[0]:
        return None
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32).reshape(shape)
    return numbers if np.isfinite(numbers).all() else None


@dataclass(frozen=True)
class AnswerSpan:
    """An answer to a question as a piece of its passage.

    Args:
        text: as it stands there.
        start: where, in characters; -1 where it was searched for and isn't in the passage.
        moved: whether it was found elsewhere than the data says.
    """

    text: str
    start: int
    moved: bool = False


def read_answers(
    dataset: Dataset, column: str, passages: Sequence[str], what: str, *, search: bool = False
) -> list[list[AnswerSpan] | None]:
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


def _answers(value: Any, passage: str, where: str, column: str, search: bool) -> list[AnswerSpan]:
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
            answers.append(AnswerSpan(text, start))
        elif search and known and text:
            answers.append(AnswerSpan(text, _nearest(text, start, passage), moved=True))
        else:
            raise DataError(
                f"{where}: expected the answer {text!r} at character {start} of its passage, got "
                f"{got!r}; `answers_at: search` of the task looks for it"
            )
    return answers


def _nearest(text: str, start: int, passage: str) -> int:
    """Return the place of the text that is nearest to `start`; -1 where it isn't in the passage."""
    before = passage.rfind(text, 0, max(start, 0) + len(text))
    after = passage.find(text, max(start, 0))
    found = [place for place in (before, after) if place >= 0]
    return min(found, key=lambda place: abs(place - start), default=-1)
