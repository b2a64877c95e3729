"""Results of a sweep: a row for each trial, their ranking, tables as text and CSV."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any

from raybrew.data.files import to_json
from raybrew.runs.report import PAGE, ReportTable, render_table, tables_as_html, time_table
from raybrew.sweeps.settings import METRICS
from raybrew.sweeps.trial import CHECKPOINTS
from raybrew.training.checkpoints import Checkpoints


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
        metrics: of its last report.
        curve: (step, score) of each evaluation.
        error: why it failed; empty if it didn't.
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

    @property
    def final(self) -> float | None:
        """The score that it is ranked by; None of a failed trial, or where it is no number."""
        known = self.status != "failed" and self.score is not None and math.isfinite(self.score)
        return self.score if known else None


def row_of(trial: Any, frame: Any, metric: str) -> TrialRow:
    """Return the row of one of Tune's trials.

    Args:
        trial: the trial.
        frame: its reports as a data frame; None where it has none.
        metric: of the sweep.
    """
    last = trial.last_result or {}
    error = trial.get_error()
    done = last.get("train/progress", 0.0) >= 1.0
    curve: tuple[tuple[int, float], ...] = ()
    if frame is not None and len(frame) and {"step", metric} <= set(frame.columns):
        curve = tuple(
            (int(step), float(score))
            for step, score in zip(frame["step"], frame[metric], strict=True)
        )
    return TrialRow(
        name=str(trial),
        config=dict(trial.config),
        status="failed" if error is not None else "finished" if done else "stopped",
        score=float(last[metric]) if metric in last else None,
        step=int(last.get("step", 0)),
        evaluations=len(curve),
        seconds=float(last.get("time_total_s", 0.0)),
        metrics={key: float(value) for key, value in metrics_of(last).items()},
        curve=curve,
        error="" if error is None else _last_line(error),
        checkpoint=_checkpoint(trial),
    )


def metrics_of(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the metrics among what Tune keeps of a trial's report."""
    return {
        key: value
        for key, value in (report or {}).items()
        if key.startswith(METRICS) and isinstance(value, (int, float))
    }


def ranked(rows: Sequence[TrialRow], mode: str) -> list[TrialRow]:
    """Return the trials, the best first, those without a score last.

    Trials that ran to their end come before those that were stopped early, of which those come
    first that went further: a score after a part of the steps says little beside one after all.
    """
    sign = 1.0 if mode == "min" else -1.0

    def key(row: TrialRow) -> tuple[float, ...]:
        if row.final is None:
            return (2.0, 0.0, 0.0)
        finished = row.status == "finished"
        return (float(not finished), 0.0 if finished else -row.evaluations, sign * row.final)

    return sorted(rows, key=key)


def best_of(rows: Sequence[TrialRow], mode: str) -> TrialRow | None:
    """Return the first that `ranked` has, None where no trial has a score."""
    return next((row for row in ranked(rows, mode) if row.final is not None), None)


def results_csv(rows: Sequence[TrialRow], metric: str, mode: str) -> str:
    """Return the trials as a table, the best first: a column for each path and metric."""
    paths = list(dict.fromkeys(path for row in rows for path in row.config))
    metrics = sorted({key for row in rows for key in row.metrics} - {metric})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["trial", "status", metric, "step", "evaluations", "seconds", *paths, *metrics, "error"]
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
                *(row.metrics.get(key, "") for key in metrics),
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


def _checkpoint(trial: Any) -> str:
    if trial.checkpoint is not None:
        return trial.checkpoint.path
    # Several workers write theirs by themselves.
    newest = None if trial.path is None else Checkpoints(Path(trial.path, CHECKPOINTS)).newest()
    return "" if newest is None else str(newest)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


@dataclass(frozen=True)
class TuneResult:
    """What a sweep leaves behind.

    Args:
        folder: the sweep's folder.
        best: the best trial; None where no trial has a score.
        best_job: file of the best trial's job, ready to run; empty without a best trial.
        student: folder of its student, as transformers loads it; empty likewise.
        trials: all trials, the best first.
        labels: in (teacher, example): `needed`, `in_store` before, `forwards` of the teachers,
            `hits` and `misses` of all trials together.
        teachers: metrics of each teacher on its task's evaluation rows.
        ensembles: metrics of each task's mixture, as the base job mixes it.
        times: seconds of each stage.
        metric: that trials are ranked by.
    """

    folder: str
    best: TrialRow | None
    best_job: str
    student: str
    trials: tuple[TrialRow, ...]
    labels: dict[str, float]
    teachers: dict[str, dict[str, float]]
    ensembles: dict[str, dict[str, float]]
    times: dict[str, float]
    metric: str = "eval/score"

    def __str__(self) -> str:
        return render_sweep(self)

    def _repr_html_(self) -> str:
        return tables_as_html(sweep_tables(self), self.folder)


def sweep_tables(result: TuneResult) -> list[ReportTable]:
    """Return trials, labels and times as tables."""
    paths = list(result.trials[0].config) if result.trials else []
    heads = [_head(path.removeprefix("distillation.").removeprefix("training.")) for path in paths]
    rows = [
        [
            row.name.removeprefix("trial-"),
            row.status,
            "–" if row.score is None else f"{row.score:.4f}",
            str(row.step),
            f"{row.seconds:.1f}",
            *(short_cell(row.config.get(path), 10) for path in paths),
        ]
        for row in result.trials
    ]
    counts = [[name, f"{value:.0f}"] for name, value in result.labels.items()]
    return [
        ReportTable("Trials", ["", "status", _head(result.metric), "steps", "s", *heads], rows),
        ReportTable("Labels (teacher, example)", ["", "count"], counts),
        time_table(result.times),
    ]


def render_sweep(result: TuneResult) -> str:
    """Return the tables as text, with what failed and where everything is."""
    trials, *others = [render_table(*each) for each in sweep_tables(result)]
    failed = [f"{row.name}: {row.error}" for row in result.trials if row.error]
    parts = [trials, *(["Failed\n" + "\n".join(failed) + "\n"] if failed else []), *others]
    parts.append(
        f"Sweep: {result.folder}\nReport: {Path(result.folder, PAGE)}\n"
        f"Best job: {result.best_job or 'none'}\nStudent: {result.student or 'none'}\n"
    )
    return "\n".join(parts)


def _head(name: str) -> str:
    # A path in lines of a column's width, broken behind its dots and underscores.
    lines = wrap(re.sub(r"([._/])", r"\1 ", name), 10, break_long_words=False)
    return "\n".join(line.replace(" ", "") for line in lines)
