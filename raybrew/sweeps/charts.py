"""The HTML report of a sweep: importances, charts and tables in one file."""

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib
import optuna
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial
from optuna.visualization import matplotlib as drawings

from raybrew.sweeps.results import TrialRow, TuneResult, short_cell
from raybrew.sweeps.space import Range

MIN_TRIALS = 4
"""Fewer trials tell nothing about a parameter's importance."""
DPI = 144
SIZE = (10.0, 5.0)
ACCENT, QUIET = "#0b6e99", "#b9c4cc"
LONGEST = 120
"""Characters of a value in the page."""


def study_of(
    rows: Sequence[TrialRow], ranges: Mapping[str, Range], mode: str
) -> optuna.study.Study:
    """Return the trials that have a score, each at its last one, whether or not it was stopped.

    A score that is no finite number, such as the correlation of a constant, is none.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    searched = {path: each for path, each in ranges.items() if each.is_searched}
    distributions = {path: _distribution(path, rows, each) for path, each in searched.items()}
    for row in rows:
        if row.final is None:
            continue
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=row.final,
                params={path: _parameter(row.config[path], searched[path]) for path in searched},
                distributions=distributions,
                intermediate_values={n: y for n, y in row.curve if math.isfinite(y)},
            )
        )
    return study


def importances(study: optuna.study.Study) -> dict[str, float]:
    """Return each parameter's share in what separates good trials from the others (PED-ANOVA).

    Empty where there are too few trials, or all score the same.

    Reference:
        Watanabe et al., PED-ANOVA (IJCAI 2023), as Optuna computes it.
    """
    scores = {trial.value for trial in study.trials}
    if len(study.trials) < MIN_TRIALS or len(scores) < 2:
        return {}
    return optuna.importance.get_param_importances(study)


def _distribution(path: str, rows: Sequence[TrialRow], each: Range) -> BaseDistribution:
    if each.interval is None:
        # Trials may hold values that a user's function gave, or PBT made of the listed ones.
        seen = [_parameter(row.config[path], each) for row in rows]
        listed = [_parameter(value, each) for value in each.values]
        return CategoricalDistribution(list(dict.fromkeys([*listed, *seen])))
    numbers = [row.config[path] for row in rows]
    low, high = min([each.interval[0], *numbers]), max([each.interval[1], *numbers])
    if each.integer:
        return IntDistribution(int(low), int(high), log=each.log)
    return FloatDistribution(float(low), float(high), log=each.log)


def _parameter(value: Any, each: Range) -> Any:
    if each.interval is not None:
        return value
    if isinstance(value, (bool, int, float, str)):
        return value
    if value is None:
        return "none"
    # Long ones are cut where they are drawn: their number keeps them apart.
    number = next((n for n, one in enumerate(each.values) if one == value), len(each.values))
    return f"{number}: {short_cell(value)}"


def draw(
    study: optuna.study.Study, rows: Sequence[TrialRow], metric: str, folder: Path
) -> dict[str, str]:
    """Write the charts as PNG, and return each as SVG for the page.

    Args:
        study: the trials that have a score.
        rows: the trials, the best first.
        metric: name of the score.
        folder: where the PNGs are written.

    Returns:
        By the name of the chart.
    """
    importance = importances(study)
    charts: dict[str, Callable[[], Figure]] = {"learning_curves": lambda: _curves(rows, metric)}
    if study.trials:
        charts["parallel_coordinates"] = lambda: _parallel(study, metric)
    if importance:
        charts["importance"] = lambda: _importance(importance)
    # No window, and letters as letters: a page can be searched.
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 10, "svg.hashsalt": "sweep"}):
        return {name: _saved(chart(), folder / f"{name}.png") for name, chart in charts.items()}


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


def _curves(rows: Sequence[TrialRow], metric: str) -> Figure:
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


def render_page(
    result: TuneResult,
    charts: Mapping[str, str],
    ranges: Mapping[str, Range],
    base: Mapping[str, Any],
    *,
    metric: str,
    mode: str,
) -> str:
    """Return the report as one HTML file, readable without a network.

    Args:
        result: of the sweep.
        charts: SVG by name.
        ranges: the search space, by path.
        base: by path, the base job's value.
        metric: the score.
        mode: `max` or `min`.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = lambda value: short_cell(value, LONGEST)
    template = files("raybrew.sweeps").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        result=result,
        name=Path(result.folder).name,
        metric=metric,
        mode=mode,
        ranges={path: each.text for path, each in ranges.items()},
        base=base,
        charts=charts,
        counts={
            status: sum(row.status == status for row in result.trials)
            for status in ("finished", "stopped", "failed")
        },
    )
