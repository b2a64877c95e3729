"""Files of rows in CSV, TSV, CoNLL's and SQuAD's form.

CSV and TSV: one value for each column in every row, and texts as they stand.

    .csv   quotes around a value as RFC 4180 has them; other quoting is an error
    .tsv   no quoting: one row a line, a quote is a character as any other

The types of the columns follow from all of their values:

    numbers   1.5  nan  NA  (blank)   ──►  1.5   null   null   null
    texts     yes  nan  NA  (blank)   ──►  yes   nan    NA     null

Numbers with leading zeros, or of more digits than an int64 holds, are texts: codes, in which every
digit counts.

CoNLL's form has one word a line with its tag last, and a blank line between sentences:

    -DOCSTART- -X- -X- O

    EU NNP B-NP B-ORG        ──►  tokens ["EU", "rejects"]   tags ["B-ORG", "O"]
    rejects VBZ B-VP O

SQuAD's form, also CMRC's, is nested; it becomes rows of id, question, context, answers:

    {"data": [{"paragraphs": [{"context": …, "qas": [{"id", "question", "answers": […]}]}]}]}
"""

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
from datasets import Dataset, Features, List, Value

from raybrew.errors import DataError

pc: Any = pyarrow.compute  # its functions are made as it is imported, which pyright can't see

_MISSING = [
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
]
"""Missing values among numbers, those that pandas knows."""
_INTEGER = r"[+-]?(0|[1-9][0-9]{0,17})"
_DECIMAL = rf"({_INTEGER}(\.[0-9]*)?|[+-]?\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(?i:inf|infinity)"
_TYPES = (
    (_INTEGER, pa.int64()),
    (_DECIMAL, pa.float64()),
    ("true|True|TRUE|false|False|FALSE", pa.bool_()),
)
_BLOCK = 1 << 14
"""Rows that are Python objects at one time."""

_DOCUMENT = "-DOCSTART-"

_SQUAD_FEATURES = Features(
    {
        "id": Value("string"),
        "question": Value("string"),
        "context": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
    }
)
_SQUAD_HEAD = 4096
_INT64_MAX = (1 << 63) - 1


def read_csv(place: Path) -> Dataset:
    """Read a file; the values of `.tsv` are separated by tabs.

    Raises:
        ValueError, OSError: it can't be read; the message names the line of a malformed row.
    """
    # The csv module limits the length of a value to 131,072 characters.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with place.open(encoding="utf-8-sig", newline="") as stream:
            rows = _rows(stream, tabs=place.suffix.lower() == ".tsv")
            names = _column_names(next(rows, []))
            blocks: list[list[pa.Array]] = [[] for _ in names]
            while block := list(islice(rows, _BLOCK)):
                for chunks, values in zip(blocks, zip(*block, strict=True), strict=True):
                    chunks.append(pa.array(values, pa.string()))
    finally:
        csv.field_size_limit(limit)
    columns = [_typed(pa.chunked_array(chunks, pa.string())) for chunks in blocks]
    return Dataset(pa.table(columns, names=names))


def _rows(stream: Any, *, tabs: bool) -> Iterator[list[str]]:
    """Yield the header and the rows, all of one length; blank lines are skipped."""
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    reader = csv.reader(stream, strict=True, **dialect)
    header: list[str] = []
    while True:
        begin = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"line {begin}: {error}; a value that holds quotes, commas or line ends is "
                'quoted, and a quote inside of it doubled: "He wrote ""yes"", twice"'
            ) from error
        if row is None:
            return
        if not row:
            continue
        header = header or row
        if len(row) != len(header):
            rule = (
                "values can't hold tabs or line ends in a .tsv file, write them as .csv or .parquet"
                if tabs
                else 'quote values that hold commas or line ends: "Hello, world"'
            )
            raise ValueError(
                f"line {begin}: expected {len(header)} values, as the header has names "
                f"({_short(', '.join(header))}), got {len(row)}: {_short(', '.join(row))}; {rule}"
            )
        if tabs and (quoted := next(filter(_is_quoted, row), None)):
            raise ValueError(
                f"line {begin}: expected values without quoting, as quotes are part of the text "
                f"in a .tsv file, got {_short(quoted)}, whose quotes are doubled as in a .csv "
                "file; write the file without quoting, or as .csv or .parquet"
            )
        yield row


def _column_names(header: list[str]) -> list[str]:
    # The index of a pandas frame is written under no name.
    names = [name or f"Unnamed: {number}" for number, name in enumerate(header)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"line 1: expected columns of different names, got {twice[0]!r} twice")
    return names


def _is_quoted(value: str) -> bool:
    """Whether a value reads as a CSV writer would have quoted one that holds quotes."""
    inner = value[1:-1]
    return value[:1] == value[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', "")


def _typed(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column's values in the first type that can hold all of them."""
    missing = pc.is_in(texts, value_set=pa.array(_MISSING))
    if not pc.all(missing, min_count=0).as_py():
        for pattern, type_ in _TYPES:
            fits = pc.match_substring_regex(texts, rf"^\s*({pattern})\s*$")
            if pc.all(pc.or_(fits, missing), min_count=0).as_py():
                values = pc.ascii_ltrim(pc.utf8_trim_whitespace(texts), characters="+")
                return pc.cast(pc.if_else(missing, pa.scalar(None, pa.string()), values), type_)
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")


def read_conll(place: Path) -> Dataset:
    """Read sentences: `tokens`, the first value of each line, and `tags`, the last.

    Values are separated by spaces or tabs. Lines that begin a document are left out; where lines
    hold words alone, there are no tags.

    Raises:
        ValueError, OSError: it can't be read; the message names the line of a malformed row.
    """
    sentences: list[list[list[str]]] = [[]]
    width = 0
    with place.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            values = line.split()
            if not values or values[0] == _DOCUMENT:
                sentences += [[]] if sentences[-1] else []
                continue
            width = width or len(values)
            if len(values) != width:
                raise ValueError(
                    f"line {number}: expected a word, its tag last, in {width} values as the lines "
                    f"before, got {len(values)}: {_short(line.strip())}; a .txt file is read in "
                    "CoNLL's form, texts are written as .jsonl, .csv or .parquet"
                )
            sentences[-1].append(values)
    filled = [sentence for sentence in sentences if sentence]
    columns = {"tokens": [[values[0] for values in sentence] for sentence in filled]}
    if width > 1:
        columns["tags"] = [[values[-1] for values in sentence] for sentence in filled]
    return Dataset.from_dict(columns)


def is_squad(path: Path) -> bool:
    """Whether a JSON file begins as one of SQuAD's form."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        head = "".join(file.read(_SQUAD_HEAD).split())
    return head.startswith("{") and '"paragraphs":[' in head and '"data":[' in head


def read_squad(path: Path, what: str) -> Dataset:
    """Read questions with their passages; those that are `is_impossible` have no answers.

    Args:
        path: the file.
        what: the job's field that names it, for messages.

    Raises:
        DataError: it isn't of this form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        rows = [
            _squad_row(question, paragraph["context"], f"{what}: {path}")
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
        if not rows:
            raise DataError(f"{what}: expected questions, got none in {path}")
        return Dataset.from_list(rows, features=_SQUAD_FEATURES)
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{what}: expected questions in SQuAD's form (data, paragraphs, qas) in {path}, got "
            f"{type(error).__name__}: {error}"
        ) from error


def _squad_row(question: dict[str, Any], context: str, where: str) -> dict[str, Any]:
    # CMRC repeats an answer, once for each annotator who gave it.
    answers = [] if question.get("is_impossible") else question["answers"]
    starts = [answer["answer_start"] for answer in answers]
    for start in starts:
        whole = isinstance(start, int) or (isinstance(start, float) and start.is_integer())
        if isinstance(start, bool) or not whole or abs(start) > _INT64_MAX:
            raise DataError(
                f"{where}: question {question['id']!r}: expected a whole number of characters as "
                f"answer_start, got {start!r}"
            )
    return {
        "id": str(question["id"]),
        "question": question["question"],
        "context": context,
        "answers": {
            "text": [answer["text"] for answer in answers],
            "answer_start": [int(start) for start in starts],
        },
    }
