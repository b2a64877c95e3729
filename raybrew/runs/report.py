"""The results of a run as plain text tables."""

from collections.abc import Mapping
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table


def render_table(title: str, columns: list[str], rows: list[list[str]]) -> str:
    """Return a plain text table; the first column is aligned left, the others right."""
    table = Table(show_edge=False, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    text = StringIO()
    # Wide enough for any name: a figure that is cut says nothing.
    Console(file=text, width=10_000, color_system=None).print(table)
    lines = [title, *(line.rstrip() for line in text.getvalue().splitlines())]
    return "\n".join(lines) + "\n"


def render_report(result: Mapping[str, Any]) -> str:
    """Return a run's quality, labels and times as tables.

    Args:
        result: the fields of `RunResult`.
    """
    parts = []
    quality = _quality(result)
    if quality:
        # Those of every kind of task, in the order in which they come.
        names = list(dict.fromkeys(name for _, figures in quality for name in figures))
        names = [*(name for name in names if name != "examples"), "examples"]
        rows = [[who, *(_figure(figures, name) for name in names)] for who, figures in quality]
        parts.append(render_table("Evaluation", ["", *names], rows))
    if result.get("data"):
        rows = [
            [split, name, f"{count:.0f}"]
            for split, counts in result["data"].items()
            for name, count in counts.items()
        ]
        parts.append(render_table("Data", ["", "", "count"], rows))
    if result["labels"]:
        rows = [[name, f"{value:.0f}"] for name, value in result["labels"].items()]
        parts.append(render_table("Labels (teacher, example)", ["", "count"], rows))
    rows = [[name, f"{value:.1f}"] for name, value in result["times"].items()]
    parts.append(render_table("Time", ["stage", "s"], rows))
    parts.append(f"Run: {result['folder']}\nStudent: {result['student']}\n")
    return "\n".join(parts)


def render_labels(result: Mapping[str, Any]) -> str:
    """Return what filling the store came to as tables.

    Args:
        result: the fields of `LabelResult`.
    """
    columns = ["needed", "in_store", "forwards", "recomputed", "batches"]
    rows = [
        [
            name,
            *(f"{each.get(column, 0):.0f}" for column in columns),
            f"{each.get('batch_fill', 0):.2f}",
            f"{each.get('tokens_per_s', 0):.0f}",
            f"{each.get('payload_bytes', 0) / 1e6:.2f}",
        ]
        for name, each in result["teachers"].items()
    ]
    figures = ["batch fill", "tokens/s", "MB"]
    parts = [
        render_table("Labels (teacher, example)", ["teacher", *columns, *figures], rows),
        render_table(
            "Time",
            ["stage", "s"],
            [[name, f"{each:.1f}"] for name, each in result["times"].items()],
        ),
        f"Store: {result['store']}\nRun: {result['folder']}\n",
    ]
    return "\n".join(parts)


def _quality(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    rows = [(f"teacher {name}", figures) for name, figures in result["teachers"].items()]
    rows += [(f"teachers of {name}, mixed", each) for name, each in result["ensembles"].items()]
    students: dict[str, dict[str, float]] = {}
    for key, value in result["metrics"].items():
        side, _, rest = key.partition("/")
        task, _, metric = rest.rpartition("/")
        if side == "eval" and task:
            students.setdefault(task, {})[metric] = value
    return rows + [(f"student on {task}", figures) for task, figures in students.items()]


def _figure(figures: Mapping[str, float], name: str) -> str:
    if name not in figures:
        return "–"
    return f"{figures[name]:.0f}" if name == "examples" else f"{figures[name]:.4f}"
