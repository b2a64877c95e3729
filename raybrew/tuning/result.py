"""What a sweep leaves behind, and its tables as text."""

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from raybrew.report import render_table
from raybrew.tuning.results import TrialRow, short_cell

__all__ = ["TuneResult", "render_sweep"]


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


def render_sweep(result: TuneResult, metric: str) -> str:
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
    parts = [render_table("Trials", ["", "status", _head(metric), "steps", "s", *heads], rows)]
    failed = [f"{row.name}: {row.error}" for row in result.trials if row.error]
    if failed:
        parts.append("Failed\n" + "\n".join(failed) + "\n")
    counts = [[name, f"{value:.0f}"] for name, value in result.labels.items()]
    parts.append(render_table("Labels (teacher, example)", ["", "count"], counts))
    times = [[name, f"{value:.1f}"] for name, value in result.times.items()]
    parts.append(render_table("Time", ["stage", "s"], times))
    parts.append(
        f"Sweep: {result.folder}\nReport: {Path(result.folder, 'report.html')}\n"
        f"Best job: {result.best_job or 'none'}\nStudent: {result.student or 'none'}\n"
    )
    return "\n".join(parts)


def _head(name: str) -> str:
    # A path in lines of a column's width, broken behind its dots and underscores.
    lines = wrap(re.sub(r"([._/])", r"\1 ", name), 10, break_long_words=False)
    return "\n".join(line.replace(" ", "") for line in lines)
