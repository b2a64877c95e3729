"""What a file of rows seems to be for: its columns, the task type, classes, lengths of its texts.

Only names and values are looked at; what is guessed is written into a job file, for its user to
check.

    answers {text, answer_start}            question-answering
    lists of texts beside lists of words    token-classification
    other lists                             multi-label
    numbers with decimals, or > 20 of them  regression
    texts, few numbers, true and false      sequence-classification
    no column to predict                    causal-lm
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase

from raybrew.data.columns import read_column
from raybrew.errors import DataError

_TARGETS = (
    *("label", "labels", "target", "class", "category", "sentiment", "tags", "ner_tags", "answers"),
    *("intent", "topic", "emotion", "polarity", "score", "rating", "stars", "grade", "output", "y"),
)
_TEXTS = (
    *("text", "sentence", "review", "content", "body", "message", "question", "premise", "prompt"),
    *("sentence1", "question1", "text_a", "query", "comment", "tweet", "post", "description"),
    *("document", "instruction", "words", "tokens", "title"),
)
_PAIRS = {
    "sentence1": ("sentence2",),
    "question1": ("question2",),
    "text_a": ("text_b",),
    "premise": ("hypothesis",),
    "question": ("context", "passage", "sentence", "answer"),
    "query": ("passage", "document", "text"),
    "prompt": ("completion", "response"),
    "instruction": ("output", "response"),
}
"""By name of a first text, names of the second one of a pair."""
_MOST_CLASSES_OF_NUMBERS = 20
_SAMPLED = 2000
_LENGTH_QUANTILE = 99
_LONGEST = 512


class FileGuess(NamedTuple):
    """What a file seems to be for.

    Args:
        num_rows: of the file.
        columns: names of all.
        kind: task type.
        text: column of the text.
        text_pair: of the second one; None for single texts.
        label: column to predict; None where the next token is.
        labels: how often each class comes up, the most frequent first; none without classes.
        num_unlabelled: rows without a label.
        num_textless: rows without a text, which no model reads.
        why: of the task type, in words.
    """

    num_rows: int
    columns: tuple[str, ...]
    kind: str
    text: str
    text_pair: str | None
    label: str | None
    labels: Mapping[str, int]
    num_unlabelled: int
    num_textless: int
    why: str


def guess_target(rows: Dataset) -> str | None:
    """Return the column that seems to hold what is to be predicted; None if none does."""
    names = {name.casefold(): name for name in rows.column_names}
    texts = [name for name in rows.column_names if _form(rows, name) in ("text", "words")]
    for known in _TARGETS:
        # `output` beside a prompt alone is text, not a label.
        if known in names and (known != "output" or len(rows.column_names) > 2):
            return names[known]
    first = _guess_text(rows, texts, None) if texts else None
    others = [name for name in rows.column_names if name != first]
    repeated = [(len(set(map(str, values))), name) for name in others if (values := rows[name][:])]
    few = [(count, name) for count, name in repeated if 2 <= count <= max(2, len(rows) / 5)]
    return min(few)[1] if few else None


def inspect_rows(
    rows: Dataset, *, label: str | None, text: str | None = None, kind: str | None = None
) -> FileGuess:
    """Guess what rows are for.

    Args:
        rows: at least one.
        label: the column to predict; None where the next token of the text is.
        text: the column of the text, or both of a pair with a comma between; guessed if left out.
        kind: task type; guessed if left out.

    Raises:
        DataError: a column isn't there, or no task type fits.
    """
    given = [] if text is None else [name.strip() for name in text.split(",")]
    for name in [*given, *([] if label is None else [label])]:
        read_column(rows.select([0]), name, "init")
    candidates = [
        name
        for name in rows.column_names
        if name != label and _form(rows, name) in ("text", "words")
    ]
    if not candidates and not given:
        raise DataError(
            f"init: expected a column of texts besides {label!r}, got "
            f"{', '.join(rows.column_names)}"
        )
    first = given[0] if given else _guess_text(rows, candidates, label)
    second = given[1] if len(given) > 1 else None if given else _guess_pair(first, candidates)
    values = [] if label is None else rows[label][:]
    guessed, why = _guess_kind(rows, first, label, values)
    kind, why = (guessed, why) if kind is None else (kind, "as you asked")
    known = [value for value in values if not _is_missing(value)]
    return FileGuess(
        num_rows=len(rows),
        columns=tuple(rows.column_names),
        kind=kind,
        text=first,
        text_pair=second if kind != "token-classification" else None,
        label=None if kind == "causal-lm" else label,
        labels=_classes(kind, known, None if label is None else rows.features[label]),
        num_unlabelled=len(values) - len(known) if kind != "causal-lm" else 0,
        num_textless=sum(not value for value in rows[first][:]),
        why=why,
    )


def suggest_length(
    rows: Dataset, guess: FileGuess, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[int, int]:
    """Return a `max_length` for most texts, and the tokens that 99 % of them have at most.

    Args:
        rows: of the file.
        guess: names the text columns.
        tokenizer: that the models read with; three tokens for two words without one.
    """
    drawn = np.random.default_rng(0).permutation(len(rows))[:_SAMPLED]
    sample = rows.select(np.sort(drawn))
    columns = [sample[name][:] for name in (guess.text, guess.text_pair) if name is not None]
    texts = [" ".join(map(_as_text, row)) for row in zip(*columns, strict=True)]
    if tokenizer is None:
        counts = [round(1.5 * len(text.split())) + 3 for text in texts]
    else:
        counts = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]  # type: ignore[union-attr, arg-type]
        counts = [count + (guess.text_pair is not None) for count in counts]
    most = math.ceil(float(np.percentile(counts, _LENGTH_QUANTILE)))
    return min(max(8, 8 * math.ceil(most / 8)), _LONGEST), most


def is_latin(rows: Dataset, column: str) -> bool:
    """Return whether texts are written in ASCII for the most part, as English is."""
    text = "".join(_as_text(value) for value in rows[column][:200])
    letters = [letter for letter in text if letter.isalpha()]
    return sum(letter.isascii() for letter in letters) >= 0.95 * len(letters)


def _guess_text(rows: Dataset, candidates: Sequence[str], label: str | None) -> str:
    folded = {name.casefold(): name for name in candidates}
    if label is not None and _form(rows, label) == "words":
        words = [name for name in candidates if _form(rows, name) == "words"]
        return words[0] if words else candidates[0]
    for known in _TEXTS:
        if known in folded:
            return folded[known]
    head = rows.select(range(min(len(rows), 200)))
    return max(candidates, key=lambda name: sum(len(_as_text(value)) for value in head[name][:]))


def _guess_pair(first: str, candidates: Sequence[str]) -> str | None:
    folded = {name.casefold(): name for name in candidates if name != first}
    return next((folded[n] for n in _PAIRS.get(first.casefold(), ()) if n in folded), None)


def _guess_kind(
    rows: Dataset, text: str, label: str | None, values: Sequence[Any]
) -> tuple[str, str]:
    if label is None:
        return "causal-lm", "no column to predict: the next token of each text"
    form = _form(rows, label)
    known = [value for value in values if not _is_missing(value)]
    if not known:
        raise DataError(f"init: expected labels in {label!r}, got none in {len(values)} rows")
    if form == "answers":
        return "question-answering", f"{label!r} holds answers and where they begin"
    if form in ("words", "list"):
        if _form(rows, text) == "words":
            return "token-classification", f"{label!r} holds one tag a word of {text!r}"
        return "multi-label", f"{label!r} holds lists of classes"
    distinct = set(known)
    if form == "number" and not isinstance(rows.features[label], ClassLabel):
        if any(float(value) != int(value) for value in distinct):
            return "regression", f"{label!r} holds numbers with decimals"
        if len(distinct) > _MOST_CLASSES_OF_NUMBERS:
            return "regression", f"{label!r} holds {len(distinct)} different numbers"
    if len(distinct) > max(2, len(known) / 2):
        raise DataError(
            f"init: expected classes, numbers or lists in {label!r}, got {len(distinct)} different "
            f"texts in {len(known)} rows; name the column to predict (--target)"
        )
    return "sequence-classification", f"{label!r} holds {len(distinct)} classes"


def _classes(kind: str, known: Sequence[Any], feature: Any) -> dict[str, int]:
    if kind not in ("sequence-classification", "multi-label", "token-classification"):
        return {}
    listed = kind != "sequence-classification"
    feature = getattr(feature, "feature", feature)
    flat: list[Any] = [value for row in known for value in row] if listed else list(known)
    named: list[str] = [
        str(feature.int2str(v)) if isinstance(feature, ClassLabel) else str(v) for v in flat
    ]
    return dict(Counter(named).most_common())


def _form(rows: Dataset, name: str) -> str:
    """Return the form of a column's values, that of the first one."""
    for start in range(0, len(rows), _SAMPLED):
        for value in rows[start : start + _SAMPLED][name]:
            if not _is_missing(value) and value != []:
                return _form_of(value)
    return "empty"


def _form_of(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool | int | float):
        return "number"
    parts = value if isinstance(value, list) else [value]
    if all(isinstance(each, dict) and {"text", "answer_start"} <= each.keys() for each in parts):
        return "answers"
    if isinstance(value, list):
        return "words" if all(isinstance(each, str) for each in value) else "list"
    return "other"


def _is_missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, int) and value == -100)


def _as_text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value or "")
