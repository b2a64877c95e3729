"""The results of a run, and the same as plain text tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from raybrew.config import DistillJob, TrackingConfig, TrainJob
from raybrew.config.section import user_path
from raybrew.errors import ConfigError

PAGE = "report.html"
"""The page of a run, in its folder."""


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind.

    Args:
        folder: the run's folder.
        student: folder of the student, as transformers loads it.
        metrics: last losses and evaluation of the student.
        teachers: metrics of each teacher on its task's evaluation rows.
        ensembles: metrics of each task's mixture of teachers.
        labels: label counts, in (teacher, example): `needed`, `in_store` before the run,
            `forwards` of the teachers, `hits` and `misses` of the student's workers.
        times: seconds of each stage.
        recovered: faults on the way, see `raybrew.runs.events`.
        best: the checkpoint with the highest `eval/score`; None without evaluation.
        data: by task and split, its examples, and what was cut, lost or masked on the way to them.
        warnings: what looks wrong, and what to change; see `raybrew.runs.advice`.
    """

    folder: str
    student: str
    metrics: dict[str, float]
    teachers: dict[str, dict[str, float]]
    ensembles: dict[str, dict[str, float]]
    labels: dict[str, float]
    times: dict[str, float]
    recovered: list[dict[str, Any]] = field(default_factory=list)
    best: str | None = None
    data: dict[str, dict[str, float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def trained(self) -> str:
        """What was trained: a `student` of teachers, or a `model` on labels alone."""
        return "student" if self.teachers or self.labels else "model"

    def __str__(self) -> str:
        return render_report(self)

    def _repr_html_(self) -> str:
        return tables_as_html(report_tables(self), self.folder)


@dataclass(frozen=True)
class LabelResult:
    """What filling the store leaves behind.

    Args:
        folder: the run's folder.
        store: where the labels are.
        labels: counts in (teacher, example), see `Precompute.teachers`.
        teachers: by teacher, its counts and metrics.
        times: seconds of each stage.
        scores: metrics of each teacher on its task's evaluation rows.
        ensembles: metrics of each task's mixture of teachers.
        warnings: what looks wrong, and what to change; see `raybrew.runs.advice`.
    """

    folder: str
    store: str
    labels: dict[str, float]
    teachers: dict[str, dict[str, float]]
    times: dict[str, float]
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    ensembles: dict[str, dict[str, float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return render_labels(self)

    def _repr_html_(self) -> str:
        return tables_as_html(label_tables(self), self.folder)


def read_baseline(
    tracking: TrackingConfig, job: DistillJob | TrainJob
) -> dict[str, dict[str, float]]:
    """Read the evaluation of the run that `tracking.baseline` names.

    Returns:
        By task of the job, the metrics of the model that the run trained; empty without a baseline.

    Raises:
        ConfigError: no finished run is there, or it has none of the job's tasks.
    """
    if tracking.baseline is None:
        return {}
    path = user_path(tracking.baseline, "tracking.baseline") / "report.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
        found = model_metrics({key: float(value) for key, value in metrics.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            "tracking.baseline: expected the folder of a finished run of train-teacher or distill, "
            f"got {str(path.parent)!r}, whose report.json can't be read "
            f"({type(error).__name__}: {error})"
        ) from None
    names = [task.name for task in job.tasks]
    if not found.keys() & set(names):
        raise ConfigError(
            f"tracking.baseline: expected a run that evaluates a task of the job "
            f"({', '.join(names)}), got one of {', '.join(found) or 'none'} ({path.parent})"
        )
    return {name: found[name] for name in names if name in found}


def show(result: "RunResult | LabelResult | Any", tracking: TrackingConfig) -> None:
    """Print a result's tables at the end of a run, unless its progress isn't shown either."""
    if tracking.progress:
        print(result, end="", flush=True)


class ReportTable(NamedTuple):
    """One table of a report; the first column is text, the others are numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def render_table(title: str, columns: list[str], rows: list[list[str]]) -> str:
    """Return a plain text table; the first column is aligned left, the others right."""
    table = Table(show_edge=False, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    text = StringIO()
    # Wide enough for any name: a number that is cut is useless. In a notebook rich would display
    # the table instead of writing it.
    console = Console(file=text, width=10_000, color_system=None, force_jupyter=False)
    console.print(table)
    lines = [title, *(line.rstrip() for line in text.getvalue().splitlines())]
    return "\n".join(lines) + "\n"


def tables_as_html(tables: Sequence[ReportTable], folder: str) -> str:
    """Return tables as a notebook shows them, with the path of the page that has more."""
    parts = []
    for table in tables:
        heads = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows
        )
        parts.append(
            f"<h4>{escape(table.title)}</h4><table><thead><tr>{heads}</tr></thead>"
            f"<tbody>{rows}</tbody></table>"
        )
    page = escape(str(Path(folder, PAGE)))
    return "".join(parts) + f"<p>Report: <code>{page}</code></p>"


def render_report(result: RunResult) -> str:
    """Return a run's quality, data, labels and times as tables."""
    parts = [render_table(*each) for each in report_tables(result)]
    parts += render_warnings(result.warnings)
    own = result.trained.capitalize()
    parts.append(
        f"Run: {result.folder}\n{own}: {result.student}\nReport: {Path(result.folder, PAGE)}\n"
    )
    return "\n".join(parts)


def report_tables(result: RunResult) -> list[ReportTable]:
    """Return the tables of `render_report`."""
    tables = []
    quality = _quality(result)
    if quality:
        # Metrics of every task type, in the order in which they come.
        names = list(dict.fromkeys(name for _, metrics in quality for name in metrics))
        names = [*(name for name in names if name != "examples"), "examples"]
        rows = [[who, *(_number(metrics, name) for name in names)] for who, metrics in quality]
        tables.append(ReportTable("Evaluation", ["", *names], rows))
    if result.data:
        rows = [
            [split, name, f"{count:.0f}"]
            for split, counts in result.data.items()
            for name, count in counts.items()
        ]
        tables.append(ReportTable("Data", ["", "", "count"], rows))
    if result.labels:
        rows = [[name, f"{value:.0f}"] for name, value in result.labels.items()]
        tables.append(ReportTable("Labels (teacher, example)", ["", "count"], rows))
    return [*tables, time_table(result.times)]


def render_warnings(warnings: Sequence[str]) -> list[str]:
    """Return a block with a line for each warning, if there are any."""
    return ["".join(["Warnings\n", *(f"- {each}\n" for each in warnings)])] if warnings else []


def render_labels(result: LabelResult) -> str:
    """Return the teachers' scores, counts of labels and times as tables."""
    parts = [render_table(*each) for each in label_tables(result)]
    parts += render_warnings(result.warnings)
    page = Path(result.folder, PAGE)
    parts.append(f"Store: {result.store}\nRun: {result.folder}\nReport: {page}\n")
    return "\n".join(parts)


def label_tables(result: LabelResult) -> list[ReportTable]:
    """Return the tables of `render_labels`."""
    tables = []
    if result.scores:
        scored = [(f"teacher {name}", each) for name, each in result.scores.items()]
        scored += [(f"teachers of {name}, mixed", each) for name, each in result.ensembles.items()]
        names = list(dict.fromkeys(name for _, metrics in scored for name in metrics))
        rows = [[who, *(_number(metrics, name) for name in names)] for who, metrics in scored]
        tables.append(ReportTable("Evaluation", ["", *names], rows))
    columns = ["needed", "in_store", "forwards", "recomputed", "batches"]
    rows = [
        [
            name,
            *(f"{each.get(column, 0):.0f}" for column in columns),
            f"{each.get('batch_fill', 0):.2f}",
            f"{each.get('tokens_per_s', 0):.0f}",
            f"{each.get('payload_bytes', 0) / 1e6:.2f}",
        ]
        for name, each in result.teachers.items()
    ]
    columns = ["teacher", *columns, "batch fill", "tokens/s", "MB"]
    tables.append(ReportTable("Labels (teacher, example)", columns, rows))
    return [*tables, time_table(result.times)]


def time_table(times: Mapping[str, float]) -> ReportTable:
    """Return seconds of each stage as a table."""
    rows = [[name, f"{seconds:.1f}"] for name, seconds in times.items()]
    return ReportTable("Time", ["stage", "s"], rows)


def _quality(result: RunResult) -> list[tuple[str, Mapping[str, float]]]:
    rows: list[tuple[str, Mapping[str, float]]] = [
        (f"teacher {name}", metrics) for name, metrics in result.teachers.items()
    ]
    rows += [(f"teachers of {name}, mixed", each) for name, each in result.ensembles.items()]
    own = result.trained
    rows += [(f"{own} on {name}", each) for name, each in model_metrics(result.metrics).items()]
    return rows


def model_metrics(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return by task the evaluation of the model that was trained, of `RunResult.metrics`."""
    found: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        side, _, rest = key.partition("/")
        task, _, metric = rest.rpartition("/")
        if side == "eval" and task:
            found.setdefault(task, {})[metric] = value
    return found


def _number(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "–"
    return f"{metrics[name]:.0f}" if name == "examples" else f"{metrics[name]:.4f}"
