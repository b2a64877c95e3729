"""The pictures of a sweep's report, by Optuna's drawings on Matplotlib, as SVG and PNG."""

import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import optuna
from matplotlib.figure import Figure
from optuna.visualization import matplotlib as drawings

from raybrew.tuning.results import TrialRow

__all__ = ["draw"]

DPI = 144
SIZE = (10.0, 5.0)
ACCENT, QUIET = "#0b6e99", "#b9c4cc"


def draw(
    study: optuna.study.Study,
    importance: Mapping[str, float],
    rows: list[TrialRow],
    metric: str,
    folder: Path,
) -> dict[str, str]:
    """Write the PNGs, and return each picture as SVG for the page.

    Args:
        study: the trials that have a score.
        importance: of each parameter; empty if it isn't known.
        rows: the trials, the best first.
        metric: name of the score.
        folder: where the PNGs go.

    Returns:
        By the name of the picture.
    """
    pictures: dict[str, Callable[[], Figure]] = {"learning_curves": lambda: _curves(rows, metric)}
    if study.trials:
        pictures["parallel_coordinates"] = lambda: _parallel(study, metric)
    if importance:
        pictures["importance"] = lambda: _importance(importance)
    # No window, and letters as letters: a page can be searched.
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 10, "svg.hashsalt": "sweep"}):
        return {
            name: _saved(picture(), folder / f"{name}.png") for name, picture in pictures.items()
        }


def _saved(figure: Figure, png: Path) -> str:
    figure.savefig(png, dpi=DPI, bbox_inches="tight")
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _parallel(study: optuna.study.Study, metric: str) -> Figure:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        axes: Any = drawings.plot_parallel_coordinate(study, target_name=metric)
    figure = axes.get_figure()
    figure.set_size_inches(*SIZE)
    axes.set_title("")
    # Optuna draws the parameters in the order of their names, and cuts long ones.
    paths = sorted({path for trial in study.trials for path in trial.params})
    axes.set_xticklabels([metric, *_short(paths)], rotation=15, ha="center")
    return figure


def _short(paths: list[str]) -> list[str]:
    """Return the last keys of paths where they tell the paths apart."""
    last = [path.rpartition(".")[2] for path in paths]
    return [key if last.count(key) == 1 else path for key, path in zip(last, paths, strict=True)]


def _importance(importance: Mapping[str, float]) -> Figure:
    names = list(importance)[::-1]
    figure = Figure(figsize=(SIZE[0], 0.8 + 0.45 * len(names)))
    axes = figure.subplots()
    bars = axes.barh(names, [importance[name] for name in names], color=ACCENT)
    axes.bar_label(bars, fmt="{:.2f}", padding=4)
    axes.set_xlabel("share of what separates the best trials from the others")
    _plain(axes)
    return figure


def _curves(rows: list[TrialRow], metric: str) -> Figure:
    figure = Figure(figsize=SIZE)
    axes = figure.subplots()
    for place, row in reversed(list(enumerate(rows))):
        if not row.curve:
            continue
        steps, scores = zip(*row.curve, strict=True)
        first = place == 0
        axes.plot(
            steps,
            scores,
            color=ACCENT if first else QUIET,
            linewidth=2.5 if first else 1.2,
            marker="o",
            markersize=5 if first else 3,
            label=f"best: {row.name}" if first else None,
        )
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(metric)
    if rows and rows[0].curve:
        axes.legend(frameon=False)
    _plain(axes)
    return figure


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
