"""Extractive question answering: where in a passage the answer begins, and where it ends.

    question + passage ──windows of max_length, `stride` tokens shared──► examples
    start, end scores of each window ──n-best pairs of all windows──► the answer's text

The tokens of a window are the classes of two outputs, start and end. A window that doesn't hold the
whole answer points at its class token, or its first where it has none, which also stands for
questions without an answer.

Answers are compared by their texts, as SQuAD's script does it, or as that of CMRC 2018:

    SQuAD      words between white space, without case, articles and punctuation; F1 of the bags
    CMRC 2018  characters of Chinese, words of the rest; F1 of the longest run that both share
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from scipy.special import logsumexp
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerBase

from raybrew.config import Task
from raybrew.data.columns import AnswerSpan, Rows, read_answers, read_rows
from raybrew.data.encoding import Windows, align_windows, encode_windows
from raybrew.data.payload import Payload
from raybrew.data.split import STUDENT_VIEW, UNLABELLED, EncodedSplit
from raybrew.tasks.task_type import (
    Breakdown,
    Metrics,
    Prediction,
    TaskType,
    scores_of,
    start_and_end,
)

N_BEST = 20
_LENGTHS = (0, 1, 2, 3, 5, 9)
"""Where bins of answers' lengths begin."""

_PUNCTUATION = "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"
_UNIT = re.compile(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+")


class QuestionAnswering(TaskType):
    """The start and the end of an answer."""

    name = "question-answering"
    model_class = AutoModelForQuestionAnswering
    layout = "position"
    takes_column = False
    needs_offsets = True
    ranking_metric = "f1"

    @staticmethod
    def adaptor(batch: Mapping[str, Any], outputs: Any) -> Mapping[str, Any]:
        """Read starts and ends; see `TaskType.adaptor`."""
        return start_and_end(batch, outputs)

    def read_splits(
        self, task: Task, splits: Mapping[str, Dataset]
    ) -> tuple[tuple[str, ...], dict[str, Rows]]:
        """Read questions, passages and answers; see `TaskType.read`."""
        rows = {
            side: _rows(task, split, f"tasks[{task.name}].{side}") for side, split in splits.items()
        }
        return ("start", "end"), rows

    def encode(
        self, task: Task, rows: Rows, tokenizers: Mapping[str, PreTrainedTokenizerBase]
    ) -> EncodedSplit:
        """Encode windows of passages; several of a row share its answers."""
        assert rows.pairs is not None, "a question has a passage"
        what = rows.what or f"tasks[{task.name}]"
        windows = encode_windows(
            tokenizers[STUDENT_VIEW], rows.texts, rows.pairs, task.max_length, task.stride, what
        )
        views = {STUDENT_VIEW: windows.view}
        alignments: dict[str, np.ndarray] = {}
        counts = {"questions": len(rows), "windows": len(windows.source)}
        for name, tokenizer in tokenizers.items():
            if name != STUDENT_VIEW:
                views[name], alignments[name] = align_windows(
                    windows, tokenizer, rows.texts, rows.pairs, task.max_length
                )
                unaligned = (windows.starts >= 0)[:, None] & (alignments[name] < 0)
                counts[f"positions_unaligned_{name}"] = int(unaligned.any(axis=1).sum())
        labels = np.array(
            [
                _position(windows, number, rows.labels[row])
                for number, row in enumerate(windows.source.tolist())
            ],
            np.int64,
        ).reshape(-1, 2)
        answered = np.array([bool(rows.labels[row]) for row in windows.source])
        counts["windows_without_their_answer"] = int(
            (answered & (labels[:, 1] == windows.unanswered)).sum()
        )
        if task.answers_at == "search":
            counts |= _searched(rows)
        return EncodedSplit(
            views,
            labels,
            source=windows.source,
            alignments=alignments,
            tokens={"start": windows.starts, "end": windows.ends, "unanswered": _marked(windows)},
            reference=_reference(task, rows),
            counts=counts,
        )

    def widths(self, num_labels: int) -> tuple[int, ...]:
        """Start and end, one number a token each."""
        return (1, 1)

    def num_labelled(self, rows: Rows) -> int:
        """Count questions whose answer, or that there is none, is known."""
        return sum(answers is not None for answers in rows.labels)

    def counts(self, labels: np.ndarray) -> tuple[int, int]:
        """Count windows, and their known starts and ends."""
        return len(labels), int((labels >= 0).sum())

    def labels_of(self, labels: Tensor) -> tuple[Tensor, ...]:
        """Return starts and ends, (b,) each."""
        return labels[:, 0], labels[:, 1]

    def predict(self, logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """Return both scores of each token, (b, L, 2)."""
        return torch.stack(list(logits), dim=-1)

    def metrics(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> Metrics:
        """Return exact match and F1 of the answers' texts, as the task compares them, in [0, 1]."""
        found, given = _answers_of(predicted, split, rows)
        assert split.reference is not None, "answers are compared by their texts"
        known = {row: answer.text for row, answer in found.items() if given[row] is not None}
        compare = ANSWER_METRICS[split.reference.schema.metadata[b"answers_by"].decode()]
        return compare(list(known.values()), [given[row] for row in known])

    def decode(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> list[Prediction]:
        """Return the `answer` and its `score`, that of its window; see `TaskType.decode`.

        There may be no answer where a question of the split is known to have none.
        """
        found, _ = _answers_of(predicted, split, rows)
        return [{"answer": one.text, "score": one.probability} for one in found.values()]

    def truth(
        self, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> list[Prediction | None]:
        """Return the true `answers`; see `TaskType.truth`."""
        assert split.source is not None, "a question may be several windows"
        assert split.reference is not None, "answers are compared by their texts"
        given = split.reference.column("answers")
        chosen = dict.fromkeys(split.source[rows].tolist())
        answers = [given[row].as_py() for row in chosen]
        return [None if each is None else {"answers": each} for each in answers]

    def constant_score(self, split: EncodedSplit, names: Sequence[str]) -> float:
        """Return the share of questions without an answer; see `TaskType.constant_score`."""
        known = [
            each for each in self.truth(split, np.arange(len(split)), names) if each is not None
        ]
        return sum(not each["answers"] for each in known) / len(known) if known else 0.0

    def row_scores(
        self, found: Sequence[Prediction], true: Sequence[Prediction | None], split: EncodedSplit
    ) -> np.ndarray:
        """Return the F1 of the answer, as the task compares texts; see `TaskType.row_scores`."""
        assert split.reference is not None, "answers are compared by their texts"
        compare = ANSWER_METRICS[split.reference.schema.metadata[b"answers_by"].decode()]

        def score(one: Prediction, other: Prediction) -> float:
            answers = other["answers"] if "answers" in other else [other["answer"]]
            return compare([one["answer"]], [answers])["f1"]

        return scores_of(found, true, score)

    def breakdown(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> Breakdown | None:
        """Return F1 by the length of the true answer, in words or characters."""
        true = self.truth(split, rows, names)
        scores = self.row_scores(self.decode(predicted, split, rows, names), true, split)
        assert split.reference is not None, "answers are compared by their texts"
        unit = split.reference.schema.metadata[b"answers_by"].decode()
        lengths = np.array(
            [-1 if each is None else _length(each["answers"], unit) for each in true]
        )
        if not (lengths >= 0).any():
            return None
        place = np.searchsorted(_LENGTHS, lengths, side="right") - 1
        found = [place == number for number in range(len(_LENGTHS))]
        groups = [
            f"{low}" if high - low == 1 else f"{low} to {high - 1}"
            for low, high in pairwise(_LENGTHS)
        ]
        return Breakdown(
            f"{unit}s of the answer",
            "F1",
            ["no answer", *groups[1:], f"{_LENGTHS[-1]} or more"],
            [int(each.sum()) for each in found],
            [float(scores[each].mean()) if each.any() else math.nan for each in found],
        )

    def unlabelled_rows(self, task: Task, dataset: Dataset, what: str, num_labels: int) -> Rows:
        """Read questions and passages alone; see `TaskType.unlabelled_rows`."""
        rows = read_rows(task, dataset, what)
        return Rows(rows.texts, rows.pairs, [None] * len(rows), what=what)


def _length(answers: Sequence[str], unit: str) -> int:
    """Return the length of the first answer, 0 where there is none."""
    text = answers[0] if answers else ""
    return len(text.split()) if unit == "word" else len(text)


def _answers_of(
    predicted: Payload, split: EncodedSplit, rows: np.ndarray
) -> tuple[dict[int, "Answer"], list[Any]]:
    """Return the best answer by row of the data, and the true answers of all rows."""
    assert split.reference is not None, "answers are texts of passages"
    given = split.reference.column("answers").to_pylist()
    settings = split.reference.schema.metadata
    found = decode_answers(
        predicted,
        split,
        rows,
        may_be_none=any(answers == [] for answers in given),
        max_answer_tokens=int(settings[b"max_answer_tokens"]),
    )
    return found, given


class Answer(NamedTuple):
    """An answer to a question.

    Args:
        text: of the passage; empty for no answer.
        probability: of its start times that of its end, over the tokens of its window.
    """

    text: str
    probability: float


@dataclass(frozen=True)
class _Candidate:
    score: float
    start: int
    end: int
    total: float  # logarithm of the sum over all starts and ends of the window


def decode_answers(
    scores: Payload,
    split: EncodedSplit,
    rows: np.ndarray,
    *,
    may_be_none: bool,
    max_answer_tokens: int,
    n_best: int = N_BEST,
) -> dict[int, Answer]:
    """Turn scores of windows into answers.

    Args:
        scores: start and end of each token, side by side, one ragged row a window.
        split: the windows.
        rows: which they are, int64 (n,).
        may_be_none: whether the empty text may be an answer.
        max_answer_tokens: longest answer.
        n_best: starts and ends of a window that are tried with each other.

    Returns:
        By row of the data, the best answer over all its windows; an empty one for none, which wins
        where its score, the least over the windows, is above the best answer's.
    """
    assert split.source is not None
    assert split.reference is not None
    assert scores.offsets is not None, "tokens make ragged rows"
    best: dict[int, _Candidate] = {}
    none: dict[int, tuple[float, float]] = {}
    for place, window in enumerate(rows):
        row = int(split.source[window])
        values = scores.values[scores.offsets[place] : scores.offsets[place + 1]].reshape(-1, 2)
        begin, stop = split.student.offsets[window : window + 2]
        unanswered = int(split.tokens["unanswered"][begin:stop].argmax())
        without = (float(values[unanswered].sum()), _log_total(values))
        none[row] = min(none.get(row, without), without)
        candidate = _best_span(values, split, int(window), n_best, max_answer_tokens)
        if candidate and (row not in best or candidate.score > best[row].score):
            best[row] = candidate
    passages = split.reference.column("context")
    texts = {}
    for row, (without, total) in none.items():
        found = best.get(row)
        if found is None or (may_be_none and without > found.score):
            texts[row] = Answer("", math.exp(without - total))
        else:
            text = passages[row].as_py()[found.start : found.end]
            texts[row] = Answer(text, math.exp(found.score - found.total))
    return texts


def _log_total(values: np.ndarray) -> float:
    """Return the logarithm of Σ e^start · Σ e^end over a window's tokens, (L, 2)."""
    return float(np.sum(logsumexp(values, axis=0)))


def _best_span(
    values: np.ndarray, split: EncodedSplit, window: int, n_best: int, max_tokens: int
) -> _Candidate | None:
    begin, stop = split.student.offsets[window : window + 2]
    starts, ends = split.tokens["start"][begin:stop], split.tokens["end"][begin:stop]
    passage = np.flatnonzero(starts >= 0)
    if not len(passage):
        return None
    top = [passage[np.argsort(-values[passage, side], kind="stable")[:n_best]] for side in (0, 1)]
    first, last = top[0][:, None], top[1][None, :]
    score = np.where(
        (last >= first) & (last - first < max_tokens),
        values[first, 0] + values[last, 1],
        -np.inf,
    )
    if not np.isfinite(score).any():
        return None
    i, j = np.unravel_index(int(score.argmax()), score.shape)
    total = _log_total(values)
    return _Candidate(float(score[i, j]), int(starts[top[0][i]]), int(ends[top[1][j]]), total)


def _position(
    windows: Windows, number: int, answers: Sequence[AnswerSpan] | None
) -> tuple[int, int]:
    """Return the tokens of the first answer; of none where the window doesn't hold it whole."""
    if answers is None:
        return UNLABELLED, UNLABELLED
    begin, stop = windows.view.offsets[number : number + 2]
    starts, ends = windows.starts[begin:stop], windows.ends[begin:stop]
    none = int(windows.unanswered[number]), int(windows.unanswered[number])
    if not answers or not (starts >= 0).any():
        return none
    answer = answers[0]
    if answer.start < 0:
        return UNLABELLED, UNLABELLED
    last = answer.start + len(answer.text)
    if answer.start < starts[starts >= 0].min() or last > ends.max():
        return none
    covers = np.flatnonzero((starts >= 0) & (ends > answer.start) & (starts < last))
    return (int(covers[0]), int(covers[-1])) if len(covers) else none


def _marked(windows: Windows) -> np.ndarray:
    """Mark the tokens that stand for no answer, int8 (tokens,)."""
    marked = np.zeros(len(windows.starts), np.int8)
    marked[windows.view.offsets[:-1] + windows.unanswered] = 1
    return marked


def _rows(task: Task, dataset: Dataset, what: str) -> Rows:
    rows = read_rows(task, dataset, what)
    assert rows.pairs is not None, "the task type names the passage's column"
    search = task.answers_at == "search"
    answers = read_answers(dataset, task.label, rows.pairs, what, search=search)
    return Rows(rows.texts, rows.pairs, answers, what=what)


def _searched(rows: Rows) -> dict[str, int]:
    """Count what came of looking for answers that aren't where the data says."""
    moved = [answer for answers in rows.labels for answer in answers or () if answer.moved]
    lost = sum(answer.start < 0 for answer in moved)
    return {"answers_moved": len(moved) - lost, "answers_not_found": lost}


def _reference(task: Task, rows: Rows) -> pa.Table:
    """Return what answers are compared by, and in the table's metadata how."""
    texts: list[Any] = [
        None if answers is None else [answer.text for answer in answers] for answers in rows.labels
    ]
    return pa.table(
        {
            "context": pa.array(rows.pairs, pa.large_string()),
            "answers": pa.array(texts, pa.list_(pa.string())),
        },
        metadata={
            "answers_by": task.answers_by,
            "max_answer_tokens": str(task.max_answer_tokens),
        },
    )


def squad_metrics(predicted: Sequence[str], answers: Sequence[Sequence[str]]) -> Metrics:
    """Compare texts as SQuAD's script does.

    Args:
        predicted: N texts.
        answers: of each question its true texts; none where it has no answer.

    Returns:
        `exact_match` and `f1` in [0, 1], and `examples`.
    """
    metrics = {"examples": float(len(predicted))}
    if not predicted:
        return metrics
    from torchmetrics.functional.text import squad

    found = [{"prediction_text": text, "id": str(n)} for n, text in enumerate(predicted)]
    true = [
        {"answers": {"text": list(texts) or [""], "answer_start": [0]}, "id": str(n)}
        for n, texts in enumerate(answers)
    ]
    scores = squad(found, true)  # type: ignore[arg-type]
    return metrics | {name: float(scores[name]) / 100 for name in ("exact_match", "f1")}


def character_metrics(predicted: Sequence[str], answers: Sequence[Sequence[str]]) -> Metrics:
    """Compare texts as the script of CMRC 2018 does.

    A unit is a Chinese character, or what stands together of anything else; F1 is that of the
    longest run of units that both texts have. Case and punctuation don't count.

    Args:
        predicted: N texts.
        answers: of each question its true texts; none where it has no answer.

    Returns:
        `exact_match` and `f1` in [0, 1], and `examples`.
    """
    metrics = {"examples": float(len(predicted))}
    if not predicted:
        return metrics
    pairs = [
        (_bare(text), [_bare(true) for true in list(each) or [""]])
        for text, each in zip(predicted, answers, strict=True)
    ]
    exact = sum(text in true for text, true in pairs)
    f1 = sum(max(_run_f1(_units(text), _units(one)) for one in true) for text, true in pairs)
    return metrics | {"exact_match": exact / len(pairs), "f1": f1 / len(pairs)}


ANSWER_METRICS: Mapping[
    str, Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, float]]
] = {"word": squad_metrics, "character": character_metrics}
"""By `Task.answers_by`."""


def _bare(text: str) -> str:
    return "".join(c for c in text.lower().strip() if c not in _PUNCTUATION)


def _units(text: str) -> list[str]:
    return _UNIT.findall(text)


def _run_f1(predicted: Sequence[str], true: Sequence[str]) -> float:
    if not predicted or not true:
        return float(predicted == true)
    shared = _longest_run(predicted, true)
    # 2PR / (P + R) with P = shared / predicted and R = shared / true.
    return 2 * shared / (len(predicted) + len(true))


def _longest_run(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length of the longest contiguous run that both have."""
    longest = 0
    ending = [0] * (len(right) + 1)
    for unit in left:
        # Runs that end here: one longer than those that end one before, on both sides.
        ending = [0] + [
            before + 1 if unit == other else 0 for before, other in zip(ending, right, strict=False)
        ]
        longest = max(longest, *ending)
    return longest
