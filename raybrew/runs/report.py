"""The results of a run, and the same as plain text tables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table


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


@dataclass(frozen=True)
class LabelResult:
    """What filling the store leaves behind.

    Args:
        folder: the run's folder.
        store: where the labels are.
        labels: counts in (teacher, example), see `Precompute.teachers`.
        teachers: by teacher, its counts and metrics.
        times: seconds of each stage.
    """

    folder: str
    store: str
    labels: dict[str, float]
    teachers: dict[str, dict[str, float]]
    times: dict[str, float]


def render_table(title: str, columns: list[str], rows: list[list[str]]) -> str:
    """Return a plain text table; the first column is aligned left, the others right."""
    table = Table(show_edge=False, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    text = StringIO()
    # Wide enough for any name: a number that is cut is useless.
    Console(file=text, width=10_000, color_system=None).print(table)
    lines = [title, *(line.rstrip() for line in text.getvalue().splitlines())]
    return "\n".join(lines) + "\n"


def render_report(result: RunResult) -> str:
    """Return a run's quality, data, labels and times as tables."""
    parts = []
    quality = _quality(result)
    if quality:
        # Metrics of every task type, in the order in which they come.
        names = list(dict.fromkeys(name for _, metrics in quality for name in metrics))
        names = [*(name for name in names if name != "examples"), "examples"]
        rows = [[who, *(_number(metrics, name) for name in names)] for who, metrics in quality]
        parts.append(render_table("Evaluation", ["", *names], rows))
    if result.data:
        rows = [
            [split, name, f"{count:.0f}"]
            for split, counts in result.data.items()
            for name, count in counts.items()
        ]
        parts.append(render_table("Data", ["", "", "count"], rows))
    if result.labels:
        rows = [[name, f"{value:.0f}"] for name, value in result.labels.items()]
        parts.append(render_table("Labels (teacher, example)", ["", "count"], rows))
    parts.append(_time_table(result.times))
    parts.append(f"Run: {result.folder}\nStudent: {result.student}\n")
    return "\n".join(parts)


def render_labels(result: LabelResult) -> str:
    """Return counts of labels and times as tables."""
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
    parts = [
        render_table("Labels (teacher, example)", columns, rows),
        _time_table(result.times),
        f"Store: {result.store}\nRun: {result.folder}\n",
    ]
    return "\n".join(parts)


def _time_table(times: Mapping[str, float]) -> str:
    rows = [[name, f"{seconds:.1f}"] for name, seconds in times.items()]
    return render_table("Time", ["stage", "s"], rows)


def _quality(result: RunResult) -> list[tuple[str, Mapping[str, float]]]:
    rows: list[tuple[str, Mapping[str, float]]] = [
        (f"teacher {name}", metrics) for name, metrics in result.teachers.items()
    ]
    rows += [(f"teachers of {name}, mixed", each) for name, each in result.ensembles.items()]
    students: dict[str, dict[str, float]] = {}
    for key, value in result.metrics.items():
        side, _, rest = key.partition("/")
        task, _, metric = rest.rpartition("/")
        if side == "eval" and task:
            students.setdefault(task, {})[metric] = value
    rows += [(f"student on {task}", metrics) for task, metrics in students.items()]
    return rows


def _number(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "–"
    return f"{metrics[name]:.0f}" if name == "examples" else f"{metrics[name]:.4f}"
