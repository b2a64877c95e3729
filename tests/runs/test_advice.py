"""Warnings of a run: each comes where it is due, with its figures, and stays away elsewhere."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raybrew as rb
from raybrew.data.payload import Payload
from raybrew.data.split import EncodedSplit
from raybrew.evaluation.comparison import Comparison, compare
from raybrew.runs.advice import comparison_warnings, data_warnings, result_warnings
from raybrew.runs.folder import RunFolder
from raybrew.runs.page import Pages, write_page
from raybrew.runs.report import LabelResult, RunResult
from raybrew.tasks import task_type_of
from raybrew.training.job import ResolvedJob
from tests.runs.test_page import finished

Found = tuple[RunResult, ResolvedJob, rb.DistillJob]
ROWS = 500.0


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return finished("sequence-classification", tmp_path_factory.mktemp("advice"))


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return finished("regression", tmp_path_factory.mktemp("advice"))


def scored(found: Found, own: float, a: float, b: float, mixed: float, metric="accuracy"):
    """Return the warnings of a run with these scores on 500 rows."""
    result, job, _ = found
    (task,) = job.tasks
    changed = replace(
        result,
        metrics={f"eval/{task.name}/{metric}": own, f"eval/{task.name}/examples": ROWS},
        teachers={n: {metric: each, "examples": ROWS} for n, each in (("a", a), ("b", b))},
        ensembles={task.name: {metric: mixed, "examples": ROWS}},
    )
    return result_warnings(changed, job, {})


def test_good_scores_get_no_warning(found):
    assert scored(found, own=0.93, a=0.95, b=0.94, mixed=0.948) == []


def test_a_teacher_or_a_student_that_is_no_better_than_one_answer_is_named(found):
    (task,) = found[1].tasks
    constant = task.kind.constant_score(task.split("eval"), task.label_names)
    bound = constant + 2 * (constant * (1 - constant) / ROWS) ** 0.5
    (teacher,) = scored(found, own=0.93, a=0.0075, b=0.95, mixed=0.95)
    assert "teacher 'a' has accuracy 0.0075 on 500 rows" in teacher
    assert f"{constant:.4f}" in teacher
    assert "order of its classes" in teacher
    (student,) = scored(found, own=bound - 1e-3, a=0.95, b=0.95, mixed=0.95)
    assert "the student has accuracy" in student
    assert "training.learning_rate" in student
    assert scored(found, own=bound + 1e-3, a=0.95, b=0.95, mixed=0.95) == []


def test_a_mixture_below_its_better_teacher_is_named_beyond_a_standard_error(found):
    (line,) = scored(found, own=0.9, a=0.8, b=0.948, mixed=0.893)
    assert "0.8930, less than teacher 'b' alone (0.9480)" in line
    assert "teachers[].weight" in line
    assert scored(found, own=0.9, a=0.8, b=0.948, mixed=0.940) == []  # its error is 0.0099


def test_a_run_that_only_labels_warns_of_its_teachers(found):
    result, job, _ = found
    scores = {"a": {"accuracy": 0.0, "examples": ROWS}, "b": {"accuracy": 0.9, "examples": ROWS}}
    labels = LabelResult(result.folder, "", {}, {}, {}, scores=scores, warnings=["one"])
    (line,) = result_warnings(labels, job, {})
    assert "teacher 'a'" in line
    assert "Warnings\n- one\n" in str(labels)


def test_a_correlation_that_is_none_and_a_constant_are_named(regression):
    nan = float("nan")
    lines = scored(regression, own=nan, a=0.05, b=0.9, mixed=0.9, metric="pearson")
    assert "teacher 'a' has pearson 0.0500 on 500 rows" in lines[0]
    assert "the student answers the same number to every row" in lines[1]
    assert len(lines) == 2


def of_losses(found: Found, values: list[float]) -> list[str]:
    result, job, _ = found
    (task,) = job.tasks
    plain = replace(result, metrics={}, teachers={}, ensembles={})
    curve = list(enumerate(values, 1))
    return result_warnings(plain, job, {f"train/{task.name}/loss": curve})


def test_losses_that_rise_or_stay_or_are_no_numbers_are_named(found):
    noise = np.random.default_rng(0).normal(0, 0.02, 60)
    assert of_losses(found, [*(np.linspace(1.5, 0.5, 60) + noise)]) == []
    # It falls by little, as a loss does whose floor is the entropy of soft labels.
    assert of_losses(found, [*(np.linspace(28.7, 28.4, 60) + noise)]) == []
    (rises,) = of_losses(found, [*np.linspace(1.5, 0.5, 30), *np.linspace(0.5, 4.0, 30)])
    assert "rose (" in rises
    (flat,) = of_losses(found, [*(1.7 + noise)])
    assert "didn't fall (1.696 over the first third" in flat
    # However noisy: to a third of what it was is a fall.
    wild = np.random.default_rng(1).exponential(1.0, 20)
    assert of_losses(found, [*(wild[:10] * 40), *(7.7 + wild[10:])]) == []
    (nan,) = of_losses(found, [1.0, 0.9, float("nan"), 0.8])
    assert "not a number at step 3" in nan
    assert of_losses(found, [1.0, 1.0]) == []  # too few to tell


def answers(found: Found, student: list[str], true: list[str]) -> Comparison:
    result, job, _ = found
    compared = compare(job, job.tasks[0], result.student)
    assert compared is not None
    answered = compared.found | {"student": [{"label": each} for each in student]}
    labels: list[Any] = [{"label": each} for each in true]
    return replace(compared, found=answered, true=labels)


def test_classes_that_are_never_answered_are_named_unless_they_are_rare(found):
    true = ["x"] * 10 + ["y"] * 6 + ["z"] * 4
    (line,) = comparison_warnings(answers(found, ["x"] * 10 + ["z"] * 10, true))
    assert "never answers 'y' (the label of 6), in 20 evaluation rows" in line
    assert comparison_warnings(answers(found, ["x"] * 10 + ["y"] * 10, true)) == []  # z: 4 rows
    (one,) = comparison_warnings(answers(found, ["x"] * 19 + ["z"], true))
    assert "answers 'x' to 95% of the evaluation rows, and 50% of them have that label" in one


def test_truncated_rows_are_named_from_a_tenth_on(found):
    _, job, _ = found
    (task,) = job.tasks

    def lines(cut: int) -> list[str]:
        one = replace(task)
        vars(one)["train"] = replace(task.train, counts={"truncated": cut})
        return data_warnings(replace(job, tasks=(one,)))

    rows = len(task.train)
    (line,) = lines(round(0.61 * rows))
    assert f"of {rows:,}) are longer than max_length={task.config.max_length} tokens" in line
    assert lines(rows // 11) == []


@pytest.mark.parametrize(
    ("kind", "labels", "names", "best"),
    [
        ("sequence-classification", [0, 1, 1, 1, 2, -1], "abc", 0.6),
        # b alone: 2 · 3 right, 3 answered and 4 true; with a as well 2 · 4 of 6 and 4.
        ("multi-label", [[1, 1], [0, 1], [0, 1], [-1, -1]], "ab", 6 / 7),
        ("multi-label", [[1, 1], [1, 1], [0, 1], [1, 1]], "ab", 14 / 15),
        ("regression", [[0.1], [0.2]], "a", 0.0),
    ],
)
def test_the_score_of_one_answer_is_the_best_that_the_metric_gives_any(kind, labels, names, best):
    task_type, split = task_type_of(kind), EncodedSplit({}, np.array(labels))
    found = task_type.constant_score(split, names)
    assert found == pytest.approx(best)
    if kind == "regression":
        return
    rows, width = np.arange(len(labels)), len(names)
    main, scores = task_type.main_metric(names), []
    for number in range(1, 2**width):
        on = np.array([number >> n & 1 for n in range(width)])
        same = Payload(np.tile(np.where(on, 1.0, -1.0).astype(np.float32), (len(labels), 1)))
        scores.append(task_type.metrics(same, split, rows, names)[main])
    assert max(scores) == pytest.approx(found)


def test_warnings_reach_the_report_and_the_page_even_where_the_page_fails(
    found, tmp_path, monkeypatch, caplog
):
    result, job, config = found
    own = replace(result, folder=str(tmp_path), warnings=["one & two"])
    monkeypatch.setattr("raybrew.runs.page.comparison_warnings", lambda compared: ["three"])
    folder = RunFolder(str(tmp_path.parent), tmp_path.name)
    write_page(folder, Pages(own, job, config))
    assert own.warnings == ["one & two", "three"]
    page = Path(tmp_path, "report.html").read_text()
    assert "<li>one &amp; two</li><li>three</li>" in page
    assert "Warnings\n- one & two\n- three\n" in str(own)
    assert "Warnings" not in str(result)
    monkeypatch.setattr("raybrew.runs.page.render_template", None)
    failed = replace(result, warnings=["one"])
    with caplog.at_level(logging.ERROR):
        write_page(folder, Pages(failed, job, config))
    assert failed.warnings == ["one", "three"]
