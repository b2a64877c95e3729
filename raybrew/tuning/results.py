"""What became of the trials: a row each, their order, and the table as a file."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raybrew.json_text import to_json

__all__ = ["TrialRow", "best_of", "cell", "ranked", "results_csv", "short_cell"]


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    Args:
        name: its name, and that of its folder.
        config: value of each path.
        status: `finished`, `stopped` by the scheduler or the sweep's end, or `failed`.
        score: the sweep's metric at its last evaluation; None if it had none.
        step: optimizer steps taken.
        evaluations: how many.
        seconds: in the trial's process, evaluations included.
        metrics: last figures.
        curve: (step, score) of each evaluation.
        error: what went wrong; empty if nothing did.
        checkpoint: folder of its last checkpoint.
    """

    name: str
    config: Mapping[str, Any]
    status: str
    score: float | None
    step: int
    evaluations: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[tuple[int, float], ...] = ()
    error: str = ""
    checkpoint: str = ""


def ranked(rows: Sequence[TrialRow], mode: str) -> list[TrialRow]:
    """Return the trials, the best first, those without a score last."""
    sign = 1.0 if mode == "min" else -1.0
    return sorted(rows, key=lambda row: sign * _score(row, sign))


def best_of(rows: Sequence[TrialRow], mode: str) -> TrialRow | None:
    """Return the trial with the best last score, None where no trial has one."""
    first = next(iter(ranked(rows, mode)), None)
    return first if first is not None and _known(first) and first.status != "failed" else None


def results_csv(rows: Sequence[TrialRow], metric: str, mode: str) -> str:
    """Return the trials as a table, the best first: a column for each path and figure."""
    paths = list(dict.fromkeys(path for row in rows for path in row.config))
    figures = sorted({key for row in rows for key in row.metrics} - {metric})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["trial", "status", metric, "step", "evaluations", "seconds", *paths, *figures, "error"]
    )
    for row in ranked(rows, mode):
        writer.writerow(
            [
                row.name,
                row.status,
                "" if row.score is None else row.score,
                row.step,
                row.evaluations,
                f"{row.seconds:.2f}",
                *(cell(row.config.get(path)) for path in paths),
                *(row.metrics.get(key, "") for key in figures),
                row.error,
            ]
        )
    return text.getvalue()


def cell(value: Any) -> Any:
    """Return a value of a path as a table shows it: a number or a text as it is, else JSON."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return to_json(value, default=str)


def short_cell(value: Any, most: int = 28) -> str:
    """Return a value as it stands in a narrow place."""
    shown = cell(value)
    if isinstance(shown, float):
        return f"{shown:.4g}"
    text = "–" if shown is None else str(shown)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _known(row: TrialRow) -> bool:
    return row.score is not None and math.isfinite(row.score)


def _score(row: TrialRow, sign: float) -> float:
    known = _known(row) and row.status != "failed"
    return row.score if known and row.score is not None else sign * math.inf
