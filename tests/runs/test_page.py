"""`report.html` of runs of each task type, made in this process, and the tables beside it."""

import json
import logging
from html.parser import HTMLParser
from pathlib import Path

import pytest

import raybrew as rb
from raybrew.data.split import EncodedSplit
from raybrew.evaluation.comparison import MIXED, compare, drawn_rows
from raybrew.evaluation.stored_teachers import evaluate_teachers
from raybrew.runs.folder import RunFolder
from raybrew.runs.page import Pages, read_curves, reused_share, write_page
from raybrew.runs.report import RunResult, read_baseline, render_table, show
from raybrew.runs.resolve import resolve_job
from raybrew.training.job import ResolvedJob
from tests.made import make_job, make_model
from tests.tasks.made_models import make_task_model
from tests.tasks.test_runs import job_of
from tests.training.in_process import Recorder, build

KINDS = (
    "sequence-classification",
    "multi-label",
    "regression",
    "token-classification",
    "question-answering",
    "causal-lm",
)


class Html(HTMLParser):
    """Sections, addresses, texts and how deep elements are open at the end."""

    def __init__(self, text: str):
        super().__init__()
        self.sections: list[str | None] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if tag == "section":
            self.sections.append(found.get("id"))
        for name in ("src", "href", "xlink:href"):
            value = found.get(name)
            if value and not value.startswith(("#", "data:")):
                self.addresses.append(value)


def finished(kind: str, folder: Path) -> tuple[RunResult, ResolvedJob, rb.DistillJob]:
    """Distil in this process, and return the result as a run on Ray would."""
    if kind == "sequence-classification":
        models = {name: make_model(folder / name, seed) for seed, name in enumerate("ab")}
        job = make_job(models, folder / "store")
    else:
        models = {n: make_task_model(folder / n, kind, seed) for seed, n in enumerate("ab")}
        job = job_of(kind, models, folder / "store")
    training, pool = build(job, folder / "run" / "data")
    recorder = Recorder()
    last = training.run(recorder)
    training.save(folder / "run")
    resolved = resolve_job(job, folder / "again")
    (task,) = resolved.tasks
    for teacher in task.teachers:
        pool.ask(teacher.name, task.split("eval").views[teacher.view], tuple(teacher.signals))
    pool.flush()
    lines = [{"step": n, "time": 0.0, **each} for n, each in enumerate(recorder.values, 1)]
    lines += [{"step": n, "time": 0.0, **last} for n in (1, 2)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "run" / "metrics.jsonl").write_text(text)
    teachers, ensembles = evaluate_teachers(resolved)
    result = RunResult(
        folder=str(folder / "run"),
        student=str(folder / "run" / "student"),
        metrics=last,
        teachers=teachers,
        ensembles=ensembles,
        labels={"needed": 66.0, "in_store": 6.0, "forwards": 60.0, "hits": 90.0, "misses": 30.0},
        times={"train": 61.0, "total": 75.5},
        recovered=[{"fault": "replica lost", "who": "teacher 'a'", "what": "<b>started</b> again"}],
        data=resolved.data_counts(),
    )
    return result, resolved, job


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_of_each_task_type_is_offline_and_shows_every_part(kind, tmp_path):
    result, resolved, job = finished(kind, tmp_path)
    text = Pages(result, resolved, job).render()
    page = Html(text)
    (task,) = resolved.tasks
    assert page.sections == [f"task-{task.name}", "labels", "run", "job"]
    assert page.addresses == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 2
    assert "&lt;b&gt;started&lt;/b&gt; again" in text
    assert "teachers, mixed" in text
    assert "1 min 16 s" in text
    main = task.kind.main_metric(task.label_names)
    assert f"{result.metrics[f'eval/{task.name}/{main}']:.4f}" in text


def test_the_comparison_is_that_of_all_rows(tmp_path):
    result, resolved, _ = finished("sequence-classification", tmp_path)
    (task,) = resolved.tasks
    found = compare(resolved, task, result.student)
    assert found is not None
    assert list(found.found) == ["a", "b", MIXED, "student"]
    assert found.reference == MIXED
    for name in ("a", "b"):
        accuracy = result.teachers[name]["accuracy"]
        assert found.scores[name].mean() == pytest.approx(accuracy)
    assert found.scores["student"].mean() == pytest.approx(result.metrics["eval/sum/accuracy"])
    assert found.scores[MIXED].mean() == pytest.approx(result.ensembles["sum"]["accuracy"])
    lost = found.lost(100)
    assert all(found.scores[MIXED][n] > found.scores["student"][n] for n in lost)
    sure = [found.found["student"][n]["probability"] for n in lost]
    assert sure == sorted(sure, reverse=True)
    assert len(found.rows) == found.total == len(task.split("eval"))
    # The label of the row that is shown is that of the data.
    (given,) = resolved.tasks
    labels = given.split("eval").labels
    for place, true in enumerate(found.true):
        assert true == {"label": task.label_names[labels[found.rows[place]]]}


def test_a_sample_is_bounded_and_keeps_the_examples_of_a_row_together(tmp_path):
    result, resolved, _ = finished("question-answering", tmp_path)
    (task,) = resolved.tasks
    split: EncodedSplit = task.split("eval")
    assert split.source is not None
    (rows,) = drawn_rows(split, 3)
    assert len(set(split.source[rows].tolist())) == 3
    found = compare(resolved, task, result.student, most_rows=3)
    assert found is not None
    assert (len(found.rows), found.total) == (3, 9)
    assert [len(each) for each in found.found.values()] == [3, 3, 3, 3]
    # No time at all is enough for one block.
    found = compare(resolved, task, result.student, most_s=0.0)
    assert found is not None
    assert 0 < len(found.rows) <= 128


def test_text_of_the_data_and_of_the_job_is_escaped(tmp_path):
    result, resolved, job = finished("sequence-classification", tmp_path)
    (task,) = job.tasks
    evil = "<script>alert(1)</script>"
    rows = task.eval.map(lambda row: {"text": f"{evil} {row['text']}"})  # type: ignore[union-attr]
    tracking = rb.TrackingConfig(progress=False, run_name=evil)
    update = {"tasks": (task.model_copy(update={"eval": rows}),), "tracking": tracking}
    text = Pages(result, resolved, job.model_copy(update=update)).render()
    assert evil not in text
    assert text.count("&lt;script&gt;") > 1


def test_a_page_that_cannot_be_made_loses_nothing_else(tmp_path, caplog):
    result, resolved, job = finished("regression", tmp_path)
    folder = RunFolder(str(tmp_path), "run")
    (tmp_path / "run" / "student" / "model.safetensors").write_bytes(b"broken")
    with caplog.at_level(logging.ERROR):
        write_page(folder, Pages(result, resolved, job))
    assert not (tmp_path / "run" / "report.html").exists()
    assert "report.html can't be made (ConfigError: " in caplog.text
    assert "everything else of the run is written" in caplog.text


def test_a_model_without_teachers_is_no_student(tmp_path):
    result, resolved, job = finished("sequence-classification", tmp_path)
    alone = rb.TrainJob(tasks=job.tasks, model=job.student, training=job.training)
    plain = RunResult(**{**vars(result), "teachers": {}, "ensembles": {}, "labels": {}})
    assert plain.trained == "model"
    assert "student on" not in str(plain)
    assert "model on sum" in str(plain)
    resolved = ResolvedJob(alone, tuple(resolved.with_teachers([]).tasks))
    text = Pages(plain, resolved, alone).render()
    assert "Training: run" in text
    assert "labels" not in Html(text).sections
    assert ">student<" not in text


def test_a_baseline_stands_beside_the_student_and_is_checked_at_the_start(tmp_path):
    result, resolved, job = finished("sequence-classification", tmp_path)
    (tmp_path / "alone").mkdir()
    metrics = {"eval/sum/accuracy": 0.123, "eval/score": 0.123, "train/sum/loss": 1.0}
    (tmp_path / "alone" / "report.json").write_text(json.dumps({"metrics": metrics}))
    tracking = rb.TrackingConfig(baseline=str(tmp_path / "alone"))
    baseline = read_baseline(tracking, job)
    assert baseline == {"sum": {"accuracy": 0.123}}
    assert "student alone" in (text := Pages(result, resolved, job, baseline).render())
    assert "0.1230" in text
    assert read_baseline(rb.TrackingConfig(), job) == {}
    with pytest.raises(rb.ConfigError, match=r"tracking\.baseline: expected the folder of a finis"):
        read_baseline(rb.TrackingConfig(baseline=str(tmp_path)), job)
    (tmp_path / "alone" / "report.json").write_text('{"metrics": {"eval/other/f1": 0.5}}')
    with pytest.raises(rb.ConfigError, match="expected a run that evaluates a task of the job"):
        read_baseline(tracking, job)


def test_shares_of_labels_by_hand():
    # 300 + 100 asked for, 100 forwards.
    assert reused_share({"forwards": 100, "hits": 200, "misses": 100}, 100) == pytest.approx(0.75)
    assert reused_share({"forwards": 10}) is None
    assert reused_share({"forwards": 200, "hits": 0, "misses": 100}) == 0.0


def test_the_later_of_two_records_of_a_step_holds(tmp_path):
    lines = [{"step": 2, "a": 1.0}, {"step": 1, "a": 3}, {"step": 2, "a": "nan"}, {"summary": {}}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    ((first, second),) = read_curves(tmp_path / "m.jsonl").values()
    assert first == (1, 3.0)
    assert second[1] != second[1]


def test_a_table_is_written_also_where_a_notebook_would_display_it(monkeypatch):
    # ../shared/cases/first_hour/report_in_jupyter.py: rich takes an IPython kernel for the target.
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "train │ 1.0" in render_table("Time", ["stage", "s"], [["train", "1.0"]])


def test_results_show_themselves(capsys):
    result = RunResult(
        folder="runs/<x>",
        student="runs/x/student",
        metrics={"eval/mr/accuracy": 0.75},
        teachers={"a": {"accuracy": 0.9}},
        ensembles={},
        labels={"needed": 2.0},
        times={"train": 1.0},
    )
    show(result, rb.TrackingConfig(progress=False))
    assert capsys.readouterr().out == ""
    show(result, rb.TrackingConfig())
    printed = capsys.readouterr().out
    assert printed == str(result)
    assert "student on mr" in printed
    assert "runs/<x>/report.html" in printed
    html = result._repr_html_()
    assert "<td>student on mr</td><td>0.7500</td>" in html
    assert "runs/&lt;x&gt;/report.html" in html
