"""Files in the nested form that SQuAD and CMRC are published in, as flat rows.

{"data": [{"paragraphs": [{"context": …, "qas": [{"id", "question", "answers": […]}]}]}]}
──► rows of id, question, context, answers
"""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from raybrew.errors import DataError

__all__ = ["is_squad", "read_squad"]

_FEATURES = Features(
    {
        "id": Value("string"),
        "question": Value("string"),
        "context": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
    }
)
_HEAD = 4096
_MOST = (1 << 63) - 1


def is_squad(path: Path) -> bool:
    """Whether a JSON file begins as one of this form."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        head = "".join(file.read(_HEAD).split())
    return head.startswith("{") and '"paragraphs":[' in head and '"data":[' in head


def read_squad(path: Path, what: str) -> Dataset:
    """Read questions with their passages; without answers where `is_impossible` says so.

    Args:
        path: the file.
        what: the job's field that names it, for messages.

    Raises:
        DataError: it isn't of this form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        rows = [
            _row(question, paragraph["context"], f"{what}: {path}")
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
        if not rows:
            raise DataError(f"{what}: expected questions, got none in {path}")
        return Dataset.from_list(rows, features=_FEATURES)
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{what}: expected questions in SQuAD's form (data, paragraphs, qas) in {path}, got "
            f"{type(error).__name__}: {error}"
        ) from error


def _row(question: dict[str, Any], context: str, where: str) -> dict[str, Any]:
    answers = [] if question.get("is_impossible") else question["answers"]
    # CMRC repeats an answer, once a person who gave it.
    return {
        "id": str(question["id"]),
        "question": question["question"],
        "context": context,
        "answers": {
            "text": [answer["text"] for answer in answers],
            "answer_start": [_start(answer, question, where) for answer in answers],
        },
    }


def _start(answer: dict[str, Any], question: dict[str, Any], where: str) -> int:
    start = answer["answer_start"]
    whole = isinstance(start, int) or (isinstance(start, float) and start.is_integer())
    if isinstance(start, bool) or not whole or abs(start) > _MOST:
        raise DataError(
            f"{where}: question {question['id']!r}: expected a whole number of characters as "
            f"answer_start, got {start!r}"
        )
    return int(start)
