"""The HTML report of a sweep: importances, charts and tables in one file."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial

from raybrew.runs.figures import ACCENT, LINE, PAPER, QUIET, SERIES, render_template, style, to_svg
from raybrew.sweeps.results import TrialRow, TuneResult, short_cell
from raybrew.sweeps.space import Range

MIN_TRIALS = 10
"""Fewer trials tell nothing about a parameter's importance."""
DPI = 144
SIZE = (10.0, 4.6)
WORST_TO_BEST = ("#d9822b", "#a9a26b", "#0b6e99")
"""Colours of scores: all of them can be seen on white and on black."""
LONGEST = 120
"""Characters of a value in the page."""


def study_of(
    rows: Sequence[TrialRow], ranges: Mapping[str, Range], mode: str
) -> optuna.study.Study:
    """Return the trials that have a score, each at the same number of evaluations.

    Trials that ran to their end are taken where they are enough; else all that have a score, each
    at the last evaluation that all of them had. A score that is no finite number is none.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    searched = {path: each for path, each in ranges.items() if each.is_searched}
    distributions = {path: _distribution(path, rows, each) for path, each in searched.items()}
    for row, score in comparable_scores(rows):
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=score,
                params={path: _parameter(row.config[path], searched[path]) for path in searched},
                distributions=distributions,
            )
        )
    return study


def comparable_scores(rows: Sequence[TrialRow]) -> list[tuple[TrialRow, float]]:
    """Return trials with scores that an equal share of the training stands behind."""
    scored = [(row, row.final) for row in rows if row.final is not None]
    finished = [(row, score) for row, score in scored if row.status == "finished"]
    if len(finished) >= MIN_TRIALS or len(finished) == len(scored):
        return finished
    common = min(max(len(row.curve), 1) for row, _ in scored)
    found = [(row, row.curve[common - 1][1] if row.curve else score) for row, score in scored]
    return [(row, score) for row, score in found if math.isfinite(score)]


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
    study: optuna.study.Study,
    rows: Sequence[TrialRow],
    metric: str,
    folder: Path,
    lines: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """Write the charts as PNG, and return each as SVG for the page.

    Args:
        study: the trials that have a score.
        rows: the trials, the best first.
        metric: name of the score.
        folder: where the PNGs are written.
        lines: by name, scores of teachers and others that are no trials.

    Returns:
        By the name of the chart.
    """
    importance = importances(study)
    charts: dict[str, Callable[[], Figure]] = {
        "learning_curves": lambda: _curves(rows, metric, lines or {})
    }
    if study.trials:
        charts["parallel_coordinates"] = lambda: _parallel(study, rows, metric)
    if importance:
        charts["importance"] = lambda: _importance(importance)
    found = {}
    for name, chart in charts.items():
        with style(name):
            figure = chart()
            figure.savefig(folder / f"{name}.png", dpi=DPI, bbox_inches="tight")
            found[name] = to_svg(figure)
    return found


def _parallel(study: optuna.study.Study, rows: Sequence[TrialRow], metric: str) -> Figure:
    """Draw each trial as a line over an axis for each parameter and one for its last score."""
    scored = [row for row in rows if row.final is not None]
    scores = [float(row.final or 0.0) for row in scored]
    distributions = study.trials[0].distributions
    by_path = _short(list(distributions))
    axes_of = {
        path: _positions([row.config[path] for row in scored], each)
        for path, each in distributions.items()
    }
    places = [*(each[0] for each in axes_of.values()), _placed(np.array(scores))]
    labels = [*(each[1] for each in axes_of.values()), _ends(scores)]
    figure = Figure(figsize=SIZE)
    axes = figure.subplots()
    map_ = LinearSegmentedColormap.from_list("scores", WORST_TO_BEST)
    better = study.direction == optuna.study.StudyDirection.MAXIMIZE
    shades = places[-1] if better else 1 - places[-1]
    # The best are drawn last, above the others.
    for n in np.argsort(shades, kind="stable"):
        stopped = scored[n].status != "finished"
        axes.plot(
            range(len(places)),
            [float(each[n]) for each in places],
            color=map_(float(shades[n])),
            linewidth=1.1 if stopped else 1.9,
            linestyle=(0, (3, 2)) if stopped else "-",
        )
    for number, ticks in enumerate(labels):
        axes.axvline(number, color=LINE, linewidth=1, zorder=0)
        for height, text in ticks:
            axes.annotate(
                text,
                (number, height),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=8.5,
                color=QUIET,
                va="center",
                zorder=4,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
            )
    axes.set_xticks(range(len(places)), [*by_path, metric])
    axes.set_xlim(-0.15, len(places) - 0.6)
    axes.set_ylim(-0.06, 1.06)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    return figure


Ticks = list[tuple[float, str]]


def _positions(values: list[Any], each: BaseDistribution) -> tuple[np.ndarray, Ticks]:
    """Return where values stand on an axis from 0 to 1, and the labels of its ticks."""
    if isinstance(each, CategoricalDistribution):
        shown = [str(choice) for choice in each.choices]
        own = [_choice_text(value, shown) for value in values]
        order = {text: n / max(len(shown) - 1, 1) for n, text in enumerate(shown)}
        return np.array([order[text] for text in own]), [(y, _cut(t)) for t, y in order.items()]
    assert isinstance(each, FloatDistribution | IntDistribution)
    scale = np.log if each.log else np.asarray
    low, high = float(scale(each.low)), float(scale(each.high))
    width = (high - low) or 1.0
    ends = [low, (low + high) / 2, high] if high > low else [low]
    back = np.exp if each.log else np.asarray
    ticks = [((end - low) / width, f"{float(back(end)):.3g}") for end in ends]
    return (scale(np.array(values, float)) - low) / width, ticks


def _choice_text(value: Any, shown: list[str]) -> str:
    text = "none" if value is None else str(value)
    if text in shown:
        return text
    # `_parameter` numbers what is no plain value.
    return next((each for each in shown if each.partition(": ")[2] == short_cell(value)), shown[0])


def _placed(scores: np.ndarray) -> np.ndarray:
    width = float(np.ptp(scores)) or 1.0
    return (scores - scores.min()) / width


def _ends(scores: list[float]) -> Ticks:
    low, high = min(scores), max(scores)
    return [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")] if high > low else [(0.0, f"{low:.4g}")]


def _cut(text: str) -> str:
    return text if len(text) <= 18 else f"{text[:17]}…"


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
    return figure


def _curves(rows: Sequence[TrialRow], metric: str, lines: Mapping[str, float]) -> Figure:
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
            color=ACCENT if first else SERIES[-1],
            alpha=1.0 if first else 0.75,
            linewidth=2.5 if first else 1.2,
            linestyle="-" if row.status == "finished" else (0, (3, 2)),
            marker="o",
            markersize=5 if first else 3,
            label=f"best: {row.name}" if first else None,
        )
    for number, (name, score) in enumerate(lines.items(), 1):
        colour = SERIES[number % (len(SERIES) - 1)]
        axes.axhline(score, color=colour, linewidth=1.4, linestyle=(0, (6, 3)), label=name)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(metric)
    axes.grid(axis="y", linewidth=0.7)
    axes.set_axisbelow(True)
    if lines or (rows and rows[0].curve):
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=4, fontsize=9)
    return figure


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
    return render_template(
        "sweep.html.j2",
        cell=lambda value: short_cell(value, LONGEST),
        min_trials=MIN_TRIALS,
        compared=len(comparable_scores(result.trials)),
        scores=[
            *((f"teacher {name}", each) for name, each in result.teachers.items()),
            *((f"teachers of {name}, mixed", each) for name, each in result.ensembles.items()),
        ],
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
