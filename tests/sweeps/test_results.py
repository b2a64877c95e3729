"""Order, table, importances and page of made trials."""

import csv
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybrew.sweeps.charts import (
    MIN_TRIALS,
    comparable_scores,
    draw,
    importances,
    render_page,
    study_of,
)
from raybrew.sweeps.results import TrialRow, TuneResult, best_of, ranked, results_csv
from raybrew.sweeps.space import Range

RANGES = {
    "training.learning_rate": Range.between("log", 1e-4, 1e-2, integer=False, log=True),
    "distillation.temperature": Range.between("float", 1.0, 10.0, integer=False, log=False),
    "distillation.kd_loss": Range("choice", ("ce", "kl")),
    "distillation.matches": Range("choice", ([], [{"layer_T": 2}])),
}


def row(name: str, score: float | None, **changes: Any) -> TrialRow:
    values: dict[str, Any] = {
        "config": {"a": 1, "b": [1, 2]},
        "status": "finished",
        "step": 20,
        "evaluations": 2,
        "seconds": 1.5,
    }
    return TrialRow(name=name, score=score, **{**values, **changes})


def made_rows(count: int = 40) -> list[TrialRow]:
    """Scores that follow the learning rate alone."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        rate = float(10 ** generator.uniform(-4, -2))
        score = 1 - abs(math.log10(rate) + 3)
        config = {
            "training.learning_rate": rate,
            "distillation.temperature": float(generator.uniform(1, 10)),
            "distillation.kd_loss": str(generator.choice(["ce", "kl"])),
            "distillation.matches": [{"layer_T": 2}] if number % 2 else [],
        }
        curve = ((10, score / 2), (20, score))
        rows.append(row(f"trial-{number}", score, config=config, curve=curve))
    return rows


def test_the_best_comes_first_and_those_without_a_score_last():
    rows = [
        row("low", 0.1),
        row("failed", 0.9, status="failed"),
        row("none", None),
        row("nan", float("nan")),
        row("high", 0.5),
    ]
    assert [each.name for each in ranked(rows, "max")][:2] == ["high", "low"]
    assert [each.name for each in ranked(rows, "min")][:2] == ["low", "high"]
    best = best_of(rows, "max")
    assert best is not None
    assert best.name == "high"
    assert best_of([row("failed", 0.9, status="failed"), row("none", None)], "max") is None


def test_a_trial_that_was_stopped_early_ranks_behind_those_that_ran_to_their_end():
    rows = [
        row("early", 0.9, status="stopped", evaluations=1, step=47),
        row("late", 0.6, status="stopped", evaluations=3, step=141),
        row("later", 0.7, status="stopped", evaluations=3, step=141),
        row("bad", 0.1, evaluations=4, step=188),
        row("good", 0.5, evaluations=4, step=188),
    ]
    order = ["good", "bad", "later", "late", "early"]
    assert [each.name for each in ranked(rows, "max")] == order
    assert (best := best_of(rows, "max")) is not None
    assert best.name == "good"


def test_trials_are_compared_after_as_many_evaluations():
    whole = [
        row(f"w{n}", 0.8, evaluations=2, curve=((1, 0.4 + n / 100), (2, 0.8))) for n in range(3)
    ]
    early = row("early", 0.6, status="stopped", evaluations=1, curve=((1, 0.6),))
    found = {each.name: score for each, score in comparable_scores([*whole, early])}
    assert found == pytest.approx({"w0": 0.4, "w1": 0.41, "w2": 0.42, "early": 0.6})
    # Where enough ran to their end, those alone; likewise where all did.
    many = [row(f"w{n}", 0.8) for n in range(MIN_TRIALS)]
    assert len(comparable_scores([*many, early])) == MIN_TRIALS
    assert [score for _, score in comparable_scores(whole)] == [0.8, 0.8, 0.8]


def test_teachers_have_a_line_and_a_row(tmp_path: Path):
    rows = ranked(made_rows(12), "max")
    study = study_of(rows, RANGES, "max")
    charts = draw(study, rows, "eval/score", tmp_path, {"teacher a": 0.93})
    assert ">teacher a<" in charts["learning_curves"]
    result = replace(result_of(rows, rows[0]), teachers={"a": {"accuracy": 0.93}})
    assert "<td>teacher a</td><td>0.93</td>" in page_of(result, charts)


def test_few_trials_are_said_to_be_too_few(tmp_path: Path):
    rows = ranked(made_rows(MIN_TRIALS - 1), "max")
    study = study_of(rows, RANGES, "max")
    assert importances(study) == {}
    text = page_of(result_of(rows, rows[0]), draw(study, rows, "eval/score", tmp_path))
    assert f"at least {MIN_TRIALS} trials" in text


def test_the_table_holds_every_path_figure_and_error():
    rows = [
        row("t1", 0.5, metrics={"eval/score": 0.5, "eval/sum/f1": 0.4}),
        row("t2", None, status="failed", error='LabelError: "lost"\nfor good'),
    ]
    read = list(csv.DictReader(io.StringIO(results_csv(rows, "eval/score", "max"))))
    assert [each["trial"] for each in read] == ["t1", "t2"]
    assert read[0]["b"] == "[1, 2]"
    assert read[0]["eval/sum/f1"] == "0.4"
    assert read[1]["error"] == 'LabelError: "lost"\nfor good'
    assert read[1]["eval/score"] == ""


def test_importance_finds_the_parameter_that_decides():
    shares = importances(study_of(made_rows(), RANGES, "max"))
    assert set(shares) == set(RANGES)
    assert max(shares, key=lambda path: shares[path]) == "training.learning_rate"
    assert sum(shares.values()) == pytest.approx(1.0)
    assert importances(study_of(made_rows(3), RANGES, "max")) == {}
    same = [row(f"t{n}", 0.5, config=each.config) for n, each in enumerate(made_rows(8))]
    assert importances(study_of(same, RANGES, "max")) == {}


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.sections: list[str | None] = []
        self.rows, self.svgs = 0, 0
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "section":
            self.sections.append(found.get("id"))
        self.rows += tag == "tr"
        self.svgs += tag == "svg"
        for name in ("src", "href", "xlink:href"):
            value = found.get(name)
            if value and not value.startswith(("#", "data:")):
                self.addresses.append(value)


def result_of(rows: list[TrialRow], best: TrialRow | None) -> TuneResult:
    return TuneResult(
        folder="runs/mr",
        best=best,
        best_job="runs/mr/best.yaml",
        student="",
        trials=tuple(rows),
        labels={"needed": 20, "forwards": 20},
        teachers={},
        ensembles={},
        times={"trials": 1.0},
    )


def page_of(result: TuneResult, charts: dict[str, str]) -> str:
    base = dict.fromkeys(RANGES, 4)
    return render_page(result, charts, RANGES, base, metric="eval/score", mode="max")


def test_the_page_holds_all_it_shows(tmp_path: Path):
    rows = ranked(
        [
            *made_rows(),
            row(
                "broken",
                None,
                status="failed",
                config=made_rows()[0].config,
                error="LabelError: <b>&amp; lost",
            ),
        ],
        "max",
    )
    study = study_of(rows, RANGES, "max")
    charts = draw(study, rows, "eval/score", tmp_path)
    text = page_of(result_of(rows, rows[0]), charts)
    page = Page(text)
    assert page.sections == ["best", "parallel", "importance", "curves", "trials", "price"]
    assert page.svgs == 3
    assert page.addresses == []  # nothing is fetched
    assert not re.search(r"<script|@import|url\((?!#)", text)
    assert page.rows >= len(rows)
    assert "LabelError: &lt;b&gt;&amp;amp; lost" in text
    for name in ("parallel_coordinates", "importance", "learning_curves"):
        png = (tmp_path / f"{name}.png").read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(png) > 10_000
    # The same trials give the same page.
    assert page_of(result_of(rows, rows[0]), draw(study, rows, "eval/score", tmp_path)) == text


def test_a_sweep_in_which_everything_failed_has_a_page(tmp_path: Path):
    rows = [row("t", None, status="failed", config=made_rows(1)[0].config, error="E: x")]
    study = study_of(rows, RANGES, "max")
    text = page_of(result_of(rows, None), draw(study, rows, "eval/score", tmp_path))
    assert "No trial has a score" in text
    assert Page(text).sections == ["best", "importance", "curves", "trials", "price"]


def test_a_score_that_is_no_number_is_none():
    rows = [*made_rows(6), row("constant", math.nan, config=made_rows(1)[0].config)]
    study = study_of(rows, RANGES, "max")
    assert [trial.value for trial in study.trials] == [each.score for each in rows[:-1]]
