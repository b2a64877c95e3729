"""Figures and templates that all pages share: runs, labels and sweeps look alike.

figure ──► SVG, its colours as variables of the page's style ──► page, in light and dark
"""

import io
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

INK, QUIET, LINE, PAPER, ACCENT = "#1b2a33", "#5b6b76", "#d9e1e6", "#fefefe", "#0b6e99"
SERIES = ("#0b6e99", "#d9822b", "#4c956c", "#8e5ea2", "#c44e52", "#7f7f7f")
"""Colours in the light; base.html.j2 has those in the dark."""
_VARIABLES = {INK: "--ink", QUIET: "--muted", LINE: "--line", PAPER: "--paper"} | {
    colour: f"--s{number}" for number, colour in enumerate(SERIES)
}
SIZE = (5.6, 3.4)
_STYLE = {
    "svg.fonttype": "none",  # letters as letters: a page can be searched
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": LINE,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "grid.color": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def style(name: str) -> Any:
    """Return the context in which a figure is drawn and saved; the name keeps its ids apart."""
    settings: Any = {**_STYLE, "svg.hashsalt": name}
    return matplotlib.rc_context(settings)


def to_svg(figure: Figure) -> str:
    """Return a figure as an element of a page, in colours that follow the page's style."""
    text = io.StringIO()
    figure.savefig(
        text, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
    )
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def draw_curves(
    curves: Mapping[str, Sequence[tuple[int, float]]],
    *,
    title: str,
    lines: Mapping[str, float] | None = None,
    is_loss: bool = False,
) -> str:
    """Draw values by step.

    Args:
        curves: by name, (step, value); what isn't finite is left out.
        title: of the figure.
        lines: by name, values of what doesn't train, drawn across.
        is_loss: whether all curves but the first are parts of it, drawn thinner.

    Returns:
        SVG.
    """
    with style(title):
        figure = Figure(figsize=SIZE)
        axes = figure.subplots()
        for number, (name, points) in enumerate(curves.items()):
            known = [(x, y) for x, y in points if math.isfinite(y)]
            steps, values = zip(*known, strict=True) if known else ((), ())
            thin = is_loss and number > 0
            axes.plot(
                steps,
                values,
                label=name,
                color=SERIES[number % len(SERIES)],
                linewidth=1.2 if thin else 2,
                marker="o" if len(known) <= 30 and not is_loss else None,
                markersize=4,
            )
        for number, (name, value) in enumerate((lines or {}).items(), len(curves)):
            colour = SERIES[number % len(SERIES)]
            axes.axhline(value, color=colour, linewidth=1.3, linestyle=(0, (4, 3)), label=name)
        axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK)
        axes.set_xlabel("optimizer steps")
        axes.grid(axis="y", linewidth=0.7)
        axes.set_axisbelow(True)
        if len(curves) + len(lines or {}) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.18), ncols=3, fontsize=9)
        return to_svg(figure)


def render_template(name: str, /, **values: Any) -> str:
    """Return a page: a template beside this module, in which every text is escaped."""
    # The root of the package, which is above this room, is imported before any module of it.
    version = sys.modules["raybrew"].__version__
    environment = Environment(
        loader=PackageLoader("raybrew.runs", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure_text, "count": count_text, "duration": duration_text}
    return environment.get_template(name).render(version=version, **values)


def figure_text(value: float) -> str:
    """Return a score with as many digits as matter: four places, or four digits if large."""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def count_text(value: float | None) -> str:
    """Return a count with its thousands apart; a dash for none."""
    return "–" if value is None else f"{value:,.0f}"


def duration_text(seconds: float) -> str:
    """Return seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
