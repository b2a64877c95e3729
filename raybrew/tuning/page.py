"""The report of a sweep: one HTML file that holds all it shows, readable without a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from raybrew.tuning.results import TrialRow, short_cell

__all__ = ["ReportFacts", "render_page"]

LONGEST = 120
"""Characters of a value in the page."""


@dataclass(frozen=True)
class ReportFacts:
    """What stands in the report.

    Args:
        name: of the sweep.
        metric: the score.
        mode: `max` or `min`.
        rows: the trials, the best first.
        best: the best trial; None where no trial has a score.
        said: by path, the search space in words.
        base: by path, the base job's value.
        labels: label counts.
        times: seconds of each stage.
        importance: of each parameter.
        command: runs the best job.
    """

    name: str
    metric: str
    mode: str
    rows: Sequence[TrialRow]
    best: TrialRow | None
    said: Mapping[str, str]
    base: Mapping[str, Any]
    labels: Mapping[str, float]
    times: Mapping[str, float]
    importance: Mapping[str, float]
    command: str


def render_page(facts: ReportFacts, pictures: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        facts: what it says.
        pictures: SVG by name.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figure"] = lambda value: short_cell(value, LONGEST)
    template = files("raybrew.tuning").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        facts=facts,
        pictures=pictures,
        counts={
            status: sum(row.status == status for row in facts.rows)
            for status in ("finished", "stopped", "failed")
        },
    )
