"""`report.html` of a run: what was made of what, scores, curves, comparison, labels, times, job.

    report.json, metrics.jsonl ─┐
    stored labels, student ─────┼──► content: dicts and texts ──► templates/run.html.j2 ──► one file
    files of the models ────────┘

The page holds everything it shows. Of the evaluation rows it looks at a sample; see
`evaluation.comparison`.
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from raybrew.config import DistillJob, Task, TrainJob
from raybrew.config.job_file import absolute_plain, dump_yaml
from raybrew.errors import RaybrewError
from raybrew.evaluation.comparison import MIXED, Comparison, compare
from raybrew.models.parameters import inspect_model
from raybrew.models.students import task_folders
from raybrew.runs.advice import comparison_warnings
from raybrew.runs.figures import (
    count_text,
    draw_curves,
    duration_text,
    figure_text,
    render_template,
)
from raybrew.runs.folder import RunFolder
from raybrew.runs.report import PAGE, LabelResult, RunResult, model_metrics
from raybrew.runs.tracking import without_secrets
from raybrew.tasks.task_data import load_splits
from raybrew.tasks.task_type import Prediction
from raybrew.training.job import ResolvedJob, ResolvedTask

logger = logging.getLogger(__name__)

MOST_EXAMPLES = 8
MOST_GROUPS = 40
MOST_MATRIX = 10
"""Rows of text in a table of examples, groups of a breakdown, classes of a matrix."""
MOST_TEXT, MOST_ANSWER = 320, 90
"""Characters of a row's text, and of an answer."""
MOST_MODELS = 5
"""Models side by side: the first teachers, their mixture, the student."""
MOST_TIMED_BYTES = 2 * 10**9
"""Weights of a model that is loaded to be timed."""


@dataclass(frozen=True)
class Pages:
    """What the page of a run is made from.

    Args:
        result: of the run.
        job: that it ran, encoded.
        config: the same as the user gave it, with its rows.
        baseline: by task, metrics of a run that is shown beside; see `TrackingConfig.baseline`.
    """

    result: RunResult | LabelResult
    job: ResolvedJob
    config: DistillJob | TrainJob
    baseline: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def student(self) -> str | None:
        """The folder of the model that was trained; None of a run that only labels."""
        return self.result.student if isinstance(self.result, RunResult) else None

    @property
    def own(self) -> str:
        """What the page calls the model that was trained."""
        return "model" if isinstance(self.config, TrainJob) else "student"

    def render(self) -> str:
        """Return the page.

        Raises:
            RaybrewError: a model can't be loaded, or rows can't be read.
        """
        sizes = {} if self.student is None else self._sizes()
        tasks = [self._task(task, sizes) for task in self.job.tasks]
        plain = without_secrets(absolute_plain(self.config))
        page = {
            "title": self._title(),
            "subtitle": f"{datetime.now():%Y-%m-%d %H:%M} · {self.result.folder}",
            "cards": [*self._score_cards(tasks), *_size_cards(tasks), *self._run_cards()],
            "warnings": self.result.warnings,
            "tasks": tasks,
            "labels": _labels(self.result),
            "economy": _economy(self.result.labels, self._evaluated),
            "data": _data_rows(self.job),
            "times": self.result.times,
            "faults": vars(self.result).get("recovered", []),
            "files": self._files(),
            "job": dump_yaml(plain),
        }
        return render_template("run.html.j2", page=page)

    @cached_property
    def compared(self) -> dict[str, Comparison | None]:
        """By task, what the models answer to the same rows; see `compare`."""
        known = {} if self.student is None else task_folders(Path(self.student))
        return {
            task.name: compare(
                self.job,
                task,
                str(known.get(task.name, self.student)) if self.student else None,
                model=self.own,
            )
            for task in self.job.tasks
        }

    def warnings(self) -> list[str]:
        """Return warnings about the answers of the model that was trained."""
        found = [] if self.student is None else list(self.compared.values())
        return [line for one in found if one is not None for line in comparison_warnings(one)]

    @property
    def _evaluated(self) -> float:
        """Labels that the teachers' evaluation read."""
        tasks = [task for task in self.job.tasks if task.eval is not None]
        return float(sum(len(task.split("eval")) * len(task.teachers) for task in tasks))

    def _title(self) -> str:
        name = Path(self.result.folder).name
        what = {"model": "Training", "student": "Distillation"}[self.own]
        return f"{'Labels' if self.student is None else what}: {name}"

    def _files(self) -> list[tuple[str, str]]:
        folder = Path(self.result.folder)
        files = [("run", str(folder))]
        if self.student is not None:
            files += [(self.own, self.student), ("metrics", str(folder / "metrics.jsonl"))]
        else:
            files.append(("label store", str(self.job.labels.store)))
        return files

    # Scores

    def _task(self, task: ResolvedTask, sizes: Mapping[str, Any]) -> dict[str, Any]:
        folder, compared = self.student, self.compared[task.name]
        models = self._models(task, sizes)
        found = {
            "name": task.name,
            "kind": task.kind.name,
            "main": task.kind.main_metric(task.label_names),
            "models": models,
            "metrics": _metric_names(models),
            "sized": any(each["parameters"] for each in models),
            "agreement": _agreement(compared) if compared and folder else {},
            "agreement_name": "difference" if task.kind.name == "regression" else "agreement",
            "note": _note(compared, task, sizes, self.own),
            "charts": self._charts(task),
            "breakdown": None,
            "matrices": [],
            "confused": None,
            "examples": [],
        }
        if compared is not None:
            found |= _breakdowns(compared)
            given = next(each for each in self.config.tasks if each.name == task.name)
            _, _, data = load_splits(given, f"tasks[{task.name}]")
            assert data is not None, "what was compared are evaluation rows"
            found["examples"] = _examples(compared, data, given, self.own)
        return found

    def _scores(self, task: ResolvedTask) -> list[tuple[str, Mapping[str, float]]]:
        """Return the metrics of teachers, their mixture and the models that train."""
        if isinstance(self.result, LabelResult):
            teachers, mixed = self.result.scores, self.result.ensembles
        else:
            teachers, mixed = self.result.teachers, self.result.ensembles
        found: list[tuple[str, Mapping[str, float]]]
        found = [(t.name, teachers[t.name]) for t in task.teachers if t.name in teachers]
        if len(found) > 1 and task.name in mixed:
            found.append((MIXED, mixed[task.name]))
        if task.name in self.baseline:
            found.append((f"{self.own} alone", self.baseline[task.name]))
        if isinstance(self.result, RunResult):
            own = model_metrics(self.result.metrics).get(task.name)
            found += [] if own is None else [(self.own, own)]
        return found

    def _models(self, task: ResolvedTask, sizes: Mapping[str, Any]) -> list[dict[str, Any]]:
        rows = []
        for name, metrics in self._scores(task):
            size = sizes.get(f"{task.name}/{name}") or sizes.get(name)
            rows.append(
                {
                    "name": name,
                    "own": name == self.own,
                    "metrics": metrics,
                    "parameters": size and size["parameters"],
                    "megabytes": size and size["megabytes"],
                    "latency": size and size["latency"],
                }
            )
        return rows

    def _sizes(self) -> dict[str, Any]:
        """Return size and speed of the student, by task where it has several, and the teachers."""
        found: dict[str, Any] = {}
        if self.student is not None:
            length = min(64, min(task.config.max_length for task in self.job.tasks))
            folders = task_folders(Path(self.student))
            found |= {f"{task}/{self.own}": _size(str(f), length) for task, f in folders.items()}
            if not folders:
                found[self.own] = _size(self.student, length)
            for teacher in self.job.teachers:
                if teacher.model is not None:
                    found[teacher.name] = _size(teacher.config.model_path, length)
        return found

    def _charts(self, task: ResolvedTask) -> list[str]:
        curves = read_curves(Path(self.result.folder, "metrics.jsonl"))
        prefix, main = f"train/{task.name}/", task.kind.main_metric(task.label_names)
        losses = {k.removeprefix(prefix): v for k, v in curves.items() if k.startswith(prefix)}
        losses.pop("agreement", None)
        losses = {k: v for k, v in losses.items() if k == "loss" or not k.startswith("num_")}
        first = {"loss": losses.pop("loss")} if "loss" in losses else {}
        charts = []
        if first and len(first["loss"]) > 1:  # a single point is no curve
            parts = dict(list(losses.items())[: MOST_MODELS - 1]) if len(losses) > 1 else {}
            charts.append(draw_curves(first | parts, title="training loss", is_loss=True))
        score = curves.get(f"eval/{task.name}/{main}")
        if score and len(score) > 1:
            lines = {
                name: metrics[main]
                for name, metrics in self._scores(task)
                if name != self.own and main in metrics
            }
            lines = dict(list(lines.items())[-MOST_MODELS:])
            charts.append(draw_curves({self.own: score}, title=f"{main} (evaluation)", lines=lines))
        return charts

    # Cards

    def _score_cards(self, tasks: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
        for task in tasks:
            scores = {
                row["name"]: row["metrics"][task["main"]]
                for row in task["models"]
                if task["main"] in row["metrics"]
            }
            own = scores.pop(self.own, None)
            alone = scores.pop(f"{self.own} alone", None)
            best = list(scores.items())[-1] if scores else None  # the mixture, or the one teacher
            if own is None and best is not None:
                own, best = best[1], None
            if own is None:
                continue
            more = []
            if best is not None:
                share = f"{own / best[1]:.0%} of " if own > 0 and best[1] > 0 else "beside "
                more.append(f"{share}{figure_text(best[1])} ({best[0]})")
            if alone is not None:
                more.append(f"{own - alone:+.4f} on {self.own} alone")
            what = f"{task['main']} on {task['name']}"
            yield {"what": what, "value": figure_text(own), "more": "; ".join(more)}

    def _run_cards(self) -> Iterator[dict[str, str]]:
        if self.result.labels:
            saved = reused_share(self.result.labels, self._evaluated)
            forwards = count_text(self.result.labels.get("forwards", 0.0))
            if saved is not None:
                value, more = f"{saved:.1%}", f"{forwards} forwards of teachers"
                yield {"what": "labels reused", "value": value, "more": more}
            else:
                yield {"what": "forwards of teachers", "value": forwards, "more": ""}
        total = self.result.times.get("total", sum(self.result.times.values()))
        train = self.result.times.get("train")
        more = "" if train is None else f"{duration_text(train)} of training"
        yield {"what": "time", "value": duration_text(total), "more": more}


def write_page(folder: RunFolder, pages: Pages) -> float:
    """Write `report.html`; a page that can't be made is an error in the log, and no more.

    The result gets the warnings that the page's comparison finds.

    Returns:
        Seconds that it took.
    """
    start = time.perf_counter()
    try:
        pages.result.warnings.extend(pages.warnings())
        folder.write(PAGE, pages.render())
    # The user's model and its adaptor run here, and the page may find no space: a run that is
    # finished doesn't fail by its page.
    except Exception as error:
        logger.error(
            "%s can't be made (%s: %s); everything else of the run is written",
            folder.path / PAGE,
            type(error).__name__,
            error,
        )
    return time.perf_counter() - start


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Read `metrics.jsonl`: by metric, (step, value); where a step comes twice, the later holds."""
    curves: dict[str, dict[int, float]] = {}
    if not path.exists():
        return {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            step = record.pop("step", None)
            if step is not None:
                for key, value in record.items():
                    curves.setdefault(key, {})[int(step)] = float(value)
    return {key: sorted(each.items()) for key, each in curves.items()}


def reused_share(labels: Mapping[str, float], evaluated: float = 0.0) -> float | None:
    """Return the share of the labels that were asked for and needed no forward of a teacher.

    Args:
        labels: counts of a run; `hits` and `misses` of the student's workers are what it asked for.
        evaluated: labels that the teachers' evaluation read besides.

    Returns:
        In [0, 1]; None where no student asked.
    """
    asked = labels.get("hits", 0.0) + labels.get("misses", 0.0)
    if not asked:
        return None
    return max(0.0, 1.0 - labels.get("forwards", 0.0) / (asked + evaluated))


def _economy(labels: Mapping[str, float], evaluated: float) -> str:
    if not labels:
        return ""
    asked = labels.get("hits", 0.0) + labels.get("misses", 0.0)
    forwards, stored = labels.get("forwards", 0.0), labels.get("in_store", 0.0)
    needed = f"The job needs {count_text(labels.get('needed', 0.0))} different labels"
    done = (
        f"{count_text(stored)} of them were in the store, and teachers computed "
        f"{count_text(forwards)}"
    )
    saved = reused_share(labels, evaluated)
    if saved is None:
        return f"{needed}: {done}."
    total = asked + evaluated
    return (
        f"{count_text(total)} labels were asked for: {count_text(asked)} by the student in all its "
        f"epochs, {count_text(evaluated)} to evaluate the teachers. {needed}: {done}. "
        f"{count_text(max(total - forwards, 0.0))} forwards of teachers were saved ({saved:.1%})."
    )


def _labels(result: RunResult | LabelResult) -> dict[str, Any] | None:
    if not result.labels:
        return None
    if isinstance(result, LabelResult):
        counts = ("needed", "in_store", "forwards", "recomputed", "batches")
        rows = [
            [
                name,
                *(count_text(each.get(count, 0.0)) for count in counts),
                count_text(each.get("tokens_per_s", 0)),
                f"{each.get('payload_bytes', 0) / 1e6:.2f}",
            ]
            for name, each in result.teachers.items()
        ]
        heads = ["teacher", *(count.replace("_", " ") for count in counts), "tokens/s", "MB"]
        return {"heads": heads, "rows": rows, "note": "MB are those of the labels."}
    rows = [
        [name.replace("_", " "), count_text(value)]
        for name, value in result.labels.items()
        if value or name in ("needed", "in_store", "forwards")
    ]
    note = (
        "Hits and misses are the student's: labels that it found in the store, or had to ask for."
    )
    return {"heads": ["", "count"], "rows": rows, "note": note}


def _data_rows(job: ResolvedJob) -> list[tuple[str, str, float]]:
    return [
        (split if n == 0 else "", name.replace("_", " "), value)
        for split, counts in job.data_counts().items()
        for n, (name, value) in enumerate(counts.items())
    ]


def _metric_names(models: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for each in models for name in each["metrics"])
    return [name for name in names if name not in ("examples", "score")]


def _size(folder: str, length: int) -> dict[str, Any] | None:
    """Return parameters, MB and ms of a model; without what can't be had, None if it can't."""
    files = [*Path(folder).glob("*.safetensors"), *Path(folder).glob("*.bin")]
    size = sum(file.stat().st_size for file in files)
    if not files or size > MOST_TIMED_BYTES:
        megabytes = size / 2**20 if files else None
        return {"parameters": None, "megabytes": megabytes, "latency": None}
    try:
        (found,) = inspect_model(folder, max_level=0, length=length, batch_size=1, repeats=20)
    except RaybrewError:  # a class of the user's, or one that reads no text of this length
        return {"parameters": None, "megabytes": size / 2**20, "latency": None}
    latency = None if found.latency_ms is None else found.latency_ms[0]
    return {
        "parameters": found.parameters,
        "megabytes": found.megabytes,
        "latency": latency,
        "length": length,
    }


def _size_cards(tasks: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """Yield cards on size and speed of the student, beside its largest and slowest teacher."""
    rows = [row for task in tasks for row in task["models"]]
    own = next((row for row in rows if row["own"] and row["parameters"]), None)
    if own is None:
        return
    others = [row for row in rows if not row["own"]]
    sizes = [row["megabytes"] for row in others if row["megabytes"]]
    more = f"{own['megabytes']:.1f} MB"
    if sizes:
        more += f", {max(sizes) / own['megabytes']:.1f} × smaller than the largest teacher"
    yield {"what": "parameters", "value": _short_count(own["parameters"]), "more": more}
    if own["latency"] is None:
        return
    times = [row["latency"] for row in others if row["latency"]]
    more = "one example on one core"
    if times:
        more = f"{max(times) / own['latency']:.1f} × as fast as the slowest teacher"
    yield {"what": "latency", "value": f"{own['latency']:.1f} ms", "more": more}


def _short_count(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"


def _note(
    compared: Comparison | None, task: ResolvedTask, sizes: Mapping[str, Any], own: str
) -> str:
    parts = []
    lengths = [each["length"] for each in sizes.values() if each and "length" in each]
    if lengths:
        parts.append(
            "Sizes in MB of 2²⁰ bytes; ms is the time of one example of "
            f"{lengths[0]} tokens on one core of this machine's CPU."
        )
    if compared is not None:
        every = len(compared.rows) == compared.total
        rows = (
            f"all {compared.total:,}" if every else f"{len(compared.rows):,} of {compared.total:,}"
        )
        parts.append(
            f"The scores above are of all evaluation rows; what follows looks at {rows} of them"
            f"{'' if every else ', drawn at random'}."
        )
        if compared.agreement and own in compared.found:
            numbers = compared.kind.name == "regression"
            parts.append(
                f"Difference: the {own}'s from the teacher's numbers, a mean of absolute values."
                if numbers
                else f"Agreement: the {own}'s answers, scored as if the teacher's were the labels."
            )
    return " ".join(parts)


# Comparison


def _agreement(compared: Comparison) -> dict[str, float]:
    # Scores of numbers are errors with a minus sign.
    sign = -1.0 if compared.kind.name == "regression" else 1.0
    return {name: sign * value for name, value in compared.agreement.items()}


def _shown_models(compared: Comparison) -> list[str]:
    """Return the models that stand side by side: the last are the mixture and the student."""
    names = list(compared.found)
    return names if len(names) <= MOST_MODELS else [*names[: MOST_MODELS - 2], *names[-2:]]


def _breakdowns(compared: Comparison) -> dict[str, Any]:
    names = [name for name in _shown_models(compared) if name in compared.breakdowns]
    if not names:
        return {}
    first = compared.breakdowns[names[0]]
    order = range(len(first.groups))
    if first.by in ("class", "entity"):  # bins and positions have an order of their own
        order = sorted(order, key=lambda group: -first.counts[group])
    order = [group for group in order if first.counts[group]]
    scores = [compared.breakdowns[name].scores for name in names]
    largest = max((s for each in scores for s in each if math.isfinite(s)), default=0.0)
    top = max(largest, 1.0) if first.metric != "absolute error" else largest
    rows = [
        {
            "group": _cut(first.groups[group], 40),
            "count": first.counts[group],
            "cells": [_bar(each[group], top) for each in scores],
        }
        for group in order[:MOST_GROUPS]
    ]
    left = len(first.groups) - len(rows)
    found: dict[str, Any] = {
        "breakdown": {
            "by": first.by,
            "metric": first.metric,
            "counted": "tokens" if first.by == "position" else "rows",
            "models": names,
            "rows": rows,
            "note": f"{left} without a row here, or smaller ones, are left out." if left else "",
        }
    }
    if first.by == "entity":
        found["breakdown"]["counted"] = "entities"
    if first.confusion is not None:
        found |= _confusions(compared, names)
    return found


def _bar(value: float, top: float) -> dict[str, float]:
    share = 100 * value / top if top and math.isfinite(value) else 0.0
    return {"value": value, "share": min(max(share, 0.0), 100.0)}


def _confusions(compared: Comparison, names: Sequence[str]) -> dict[str, Any]:
    """Return small matrices, or the most frequent mistakes where there are many classes."""
    tables = {
        name: table for name in names if (table := compared.breakdowns[name].confusion) is not None
    }
    classes = compared.breakdowns[names[0]].groups
    if len(classes) <= MOST_MATRIX:
        return {"matrices": [_matrix(name, table, classes) for name, table in tables.items()]}
    last = tables[names[-1]]
    wrong = last * (1 - np.eye(len(classes), dtype=last.dtype))
    places = np.argsort(-wrong, axis=None, kind="stable")[:12]
    pairs = [divmod(int(place), len(classes)) for place in places if wrong.flat[place]]
    rows = [
        {
            "true": _cut(classes[true], 40),
            "taken": _cut(classes[taken], 40),
            "counts": [int(table[true, taken]) for table in tables.values()],
        }
        for true, taken in pairs
    ]
    return {"confused": {"models": list(tables), "rows": rows} if rows else None}


def _matrix(name: str, table: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    totals = np.maximum(table.sum(axis=1, keepdims=True), 1)
    shares = 100 * table / totals
    rows = [
        {
            "name": _cut(classes[true], 14),
            "cells": [
                {
                    "count": int(table[true, taken]),
                    # A small share has to be seen, and the count read on it.
                    "share": 0 if not table[true, taken] else 10 + 0.55 * shares[true, taken],
                    "right": true == taken,
                }
                for taken in range(len(classes))
            ],
        }
        for true in range(len(classes))
    ]
    return {"name": name, "names": [_cut(each, 14) for each in classes], "rows": rows}


def _examples(compared: Comparison, data: Dataset, task: Task, own: str) -> list[dict[str, Any]]:
    """Return the rows that tell most about the difference between the model and its reference."""
    if compared.kind.has_labels and not any(each for each in compared.true):
        return []
    names = _shown_models(compared)
    return [
        {
            "title": title,
            "note": note,
            "models": names,
            "rows": _different([_example(compared, n, data, task) for n in places])[:most],
        }
        for title, note, places, most in _telling(compared, own)
        if places
    ]


def _different(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first row of each text: a passage may have many questions that are alike."""
    return list({row["text"]: row for row in reversed(rows)}.values())[::-1]


def _telling(compared: Comparison, own: str) -> Iterator[tuple[str, str, list[int], int]]:
    who = f"the {own}" if compared.model == own else f"“{compared.model}”"
    rows, other = f"{len(compared.rows):,} rows", compared.reference
    few = MOST_EXAMPLES // 2
    # More than are shown: some may have the same text.
    lost, won = compared.lost(2 * MOST_EXAMPLES), compared.won(2 * few)
    worse, better = int((compared.regret > 0).sum()), int((compared.regret < 0).sum())
    if other is None:
        note = f"{worse:,} of {rows}; the worst first, of equally bad ones those it is surest of."
        yield f"Where {who} is wrong", note, lost, MOST_EXAMPLES
        return
    first = "the largest loss first, of equal ones those it is surest of"
    note = f"{worse:,} of {rows}; {first}."
    yield f"Where {who} does worse than “{other}”", note, lost, MOST_EXAMPLES
    yield f"Where {who} does better than “{other}”", f"{better:,} of {rows}.", won, few


def _example(compared: Comparison, place: int, data: Dataset, task: Task) -> dict[str, Any]:
    row = data[int(compared.rows[place])]
    true = compared.true[place]
    return {
        "text": _row_text(row, task),
        "label": "–" if true is None else _answer_text(true, None, row[task.text]),
        "cells": [_cell(compared, name, place, row[task.text]) for name in _shown_models(compared)],
    }


def _row_text(row: Mapping[str, Any], task: Task) -> str:
    text = row[task.text]
    parts = [" ".join(text) if isinstance(text, list) else text]
    if task.text_pair is not None:
        parts.append(row[task.text_pair])
    return "\n— ".join(_cut(" ".join(part.split()), MOST_TEXT) for part in parts)


def _cell(compared: Comparison, name: str, place: int, words: Any) -> dict[str, str]:
    found, true = compared.found[name][place], compared.true[place]
    score = compared.scores[name][place]
    sure = found.get("probability", found.get("score"))
    mark = ""
    if math.isfinite(score) and compared.kind.name not in ("regression", "causal-lm"):
        mark = "good" if score >= 1 else "bad"
    return {
        "text": _answer_text(found, true, words),
        "mark": mark,
        "sure": f"{sure:.2f}" if sure is not None else "",
    }


def _answer_text(answer: Prediction, true: Prediction | None, words: Any) -> str:
    """Return a prediction, or a label, as it stands in a table."""
    if "tags" in answer:
        return _cut(_tags_text(words, answer["tags"], true["tags"] if true else None), MOST_TEXT)
    if "labels" in answer:
        return _cut(", ".join(answer["labels"]) or "none", MOST_ANSWER)
    if "value" in answer:
        values = answer["value"] if isinstance(answer["value"], list) else [answer["value"]]
        return ", ".join(f"{value:.3g}" for value in values)
    if "answers" in answer:
        return _cut(" / ".join(dict.fromkeys(answer["answers"])) or "no answer", MOST_ANSWER)
    if "answer" in answer:
        return _cut(answer["answer"] or "no answer", MOST_ANSWER)
    if "tokens" in answer:
        return f"{answer['accuracy']:.0%} of {answer['tokens']} tokens"
    return _cut(str(answer["label"]), MOST_ANSWER) if answer else "the text itself"


def _tags_text(
    words: Sequence[str], tags: Sequence[str | None], true: Sequence[str | None] | None
) -> str:
    """Return words with their tags; where the true tags are given, only those that are wrong."""
    if true is None:
        shown = [
            f"{word} {tag}" for word, tag in zip(words, tags, strict=True) if tag not in (None, "O")
        ]
        return ", ".join(shown) or "no entity"
    wrong = [
        f"{word} {tag or '–'}"
        for word, tag, label in zip(words, tags, true, strict=True)
        if label is not None and tag != label
    ]
    return ", ".join(wrong) or "all right"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
