"""Warnings of a run: what looks wrong in its data, teachers, mixture, training or student.

    at the start   data ─────────────────────────────► data_warnings
    at the end     scores, curves of the losses ─────► result_warnings
                   answers to the evaluation rows ───► comparison_warnings

Each is a line that says what was found, with its figures, and what to change. None stops a run.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from raybrew.evaluation.comparison import Comparison
from raybrew.runs.report import LabelResult, RunResult, model_metrics
from raybrew.tasks.task_type import Prediction
from raybrew.training.job import ResolvedJob, ResolvedTask

Curves = Mapping[str, Sequence[tuple[int, float]]]

MOST_TRUNCATED = 0.1
"""Share of truncated rows from which a run warns."""
LEAST_MARGIN = 0.02
"""A score that is no more than this above a constant answer's isn't worth a model."""
LEAST_ROWS = 5
"""Rows of a class that a model never answers."""
_ONE_ANSWER = 0.9
"""Share of the rows with the same answer that is nearly all of them."""
_LEAST_POINTS = 9
_RISE, _FALL = 1.5, 0.95
"""Reported losses that a trend needs; the last third's mean by an earlier one's that is divergence,
and the first third's that is no fall, beyond noise."""


def data_warnings(job: ResolvedJob) -> list[str]:
    """Return warnings about encoded rows: those that are truncated."""
    return [line for task in job.tasks for line in _truncated(task)]


def result_warnings(result: RunResult | LabelResult, job: ResolvedJob, curves: Curves) -> list[str]:
    """Return warnings about teachers, their mixture, the model that was trained and its losses.

    Args:
        result: of the run.
        job: what was run.
        curves: (step, value) of the run's metrics, by name.
    """
    is_run = isinstance(result, RunResult)
    teachers = result.teachers if is_run else result.scores
    own = model_metrics(result.metrics) if is_run else {}
    found: list[str] = []
    for task in job.tasks:
        for teacher in task.teachers:
            found += _near_constant(task, f"teacher {teacher.name!r}", teachers.get(teacher.name))
        found += _worse_mixture(task, teachers, result.ensembles.get(task.name, {}))
        if is_run:
            found += _near_constant(task, f"the {result.trained}", own.get(task.name))
        found += _loss_trend(task.name, curves.get(f"train/{task.name}/loss", ()))
    return found


def comparison_warnings(compared: Comparison) -> list[str]:
    """Return warnings about the answers of the model that was trained.

    Args:
        compared: the model on labelled evaluation rows, or on a sample of them.
    """
    pairs = zip(compared.found[compared.model], compared.true, strict=True)
    known = [(one, true) for one, true in pairs if true is not None]
    true = Counter(name for _, label in known for name in _classes(label))
    answers = Counter(name for one, _ in known for name in _classes(one))
    who = f"task {compared.task!r}: the {compared.model}"
    if answers and compared.kind.name == "sequence-classification":
        name, count = answers.most_common(1)[0]
        share, right = count / len(known), true[name] / len(known)
        if share >= _ONE_ANSWER and right < _ONE_ANSWER * share:
            return [
                f"{who} answers {name!r} to {share:.0%} of the evaluation rows, and {right:.0%} of "
                f"them have that label"
            ]
    missed = [name for name, count in true.most_common() if count >= LEAST_ROWS]
    missed = [name for name in missed if name not in answers]
    if not missed:
        return []
    names = ", ".join(f"{name!r} (the label of {true[name]})" for name in missed[:6])
    more = f" and {len(missed) - 6} more" if len(missed) > 6 else ""
    return [
        f"{who} never answers {names}{more}, in {len(known):,} evaluation rows; train longer, or "
        f"on more rows of these classes"
    ]


_LEARN_MORE = (
    "try another training.learning_rate (1e-3 from random weights, 1e-4 from pretrained ones), "
    "or more epochs"
)


def _classes(answer: Prediction) -> list[str]:
    """Return the classes that an answer, or a label, names."""
    if "label" in answer:
        return [answer["label"]]
    if "labels" in answer:
        return list(answer["labels"])
    tags = [tag for tag in answer.get("tags", []) if tag not in (None, "O")]
    return [tag[2:] if tag[1:2] == "-" else tag for tag in tags]  # B-PER and I-PER are PER


def _truncated(task: ResolvedTask) -> Iterator[str]:
    for side, split in (("train", task.train), ("eval", task.eval)):
        counts = {} if split is None else split.counts
        rows = counts.get("texts", 0 if split is None else len(split))
        cut = counts.get("truncated", 0)
        if rows and cut / rows >= MOST_TRUNCATED:
            yield (
                f"task {task.name!r}: {cut / rows:.0%} of the {side} rows ({cut:,} of {rows:,}) "
                f"are longer than max_length={task.config.max_length} tokens and are cut; a larger "
                f"tasks[].max_length keeps more of them, at more time and memory a step"
            )


def _near_constant(
    task: ResolvedTask, who: str, metrics: Mapping[str, float] | None
) -> Iterator[str]:
    """Yield a warning where a score is one that the same answer to every row gets by chance."""
    name = task.kind.main_metric(task.label_names)
    if metrics is None or name not in metrics or task.eval is None:
        return
    score, rows = metrics[name], metrics.get("examples", 0.0)
    constant = task.kind.constant_score(task.eval, task.label_names)
    advice = _LEARN_MORE
    if who.startswith("teacher"):
        advice = (
            "check that it was trained for this task, and the order of its classes; "
            "teachers[].weight: 0 leaves it out"
        )
    if math.isnan(score):
        if task.kind.name == "regression":
            yield f"task {task.name!r}: {who} answers the same number to every row; {advice}"
    elif score <= constant + max(_chance(task.kind.name, constant, rows), LEAST_MARGIN):
        yield (
            f"task {task.name!r}: {who} has {name} {score:.4f} on {rows:.0f} rows, and the same "
            f"answer to every row would have {constant:.4f}: no more than chance; {advice}"
        )


def _chance(kind: str, score: float, rows: float) -> float:
    """Return two standard errors of a share of rows, or of a correlation of 0."""
    if kind == "regression":
        return 2 / math.sqrt(max(rows - 1, 1))
    return 2 * math.sqrt(score * (1 - score) / max(rows, 1))


def _worse_mixture(
    task: ResolvedTask, teachers: Mapping[str, Mapping[str, float]], mixed: Mapping[str, float]
) -> Iterator[str]:
    """Yield a warning where one teacher is better than the mixture, by a standard error."""
    name = task.kind.main_metric(task.label_names)
    scores = {
        t.name: teachers[t.name].get(name, math.nan) for t in task.teachers if t.name in teachers
    }
    scores = {each: score for each, score in scores.items() if not math.isnan(score)}
    if len(scores) < 2 or math.isnan(mixed.get(name, math.nan)):
        return
    best = max(scores, key=lambda each: scores[each])
    rows = mixed.get("examples", 0.0)
    error = _chance(task.kind.name, min(max(scores[best], 0.0), 1.0), rows) / 2
    if scores[best] - mixed[name] > error:
        yield (
            f"task {task.name!r}: the teachers' mixture has {name} {mixed[name]:.4f}, less than "
            f"teacher {best!r} alone ({scores[best]:.4f}); give it a larger teachers[].weight, or "
            f"leave out weaker teachers, or try another distillation.mixture"
        )


def _loss_trend(task: str, curve: Sequence[tuple[int, float]]) -> Iterator[str]:
    """Yield a warning where the training loss rose, or didn't fall beyond its noise."""
    values = np.array([value for _, value in curve])
    advice = "try a smaller training.learning_rate, or a longer warm-up"
    if len(values) and not np.isfinite(values).all():
        step = next(step for step, value in curve if not math.isfinite(value))
        yield f"task {task!r}: the training loss is not a number at step {step}; {advice}"
        return
    if len(values) < _LEAST_POINTS:
        return
    thirds = np.array_split(values, 3)
    first, middle, last = (float(each.mean()) for each in thirds)
    # Of either mean: what two batches differ by is no trend.
    error = math.sqrt(sum(float(each.var(ddof=1)) / len(each) for each in (thirds[0], thirds[2])))
    figures = f"{first:.4g} over the first third of the run, {last:.4g} over the last"
    lowest = min(first, middle)
    if last - lowest > 2 * error and last > _RISE * lowest:
        yield f"task {task!r}: the training loss rose ({figures}); {advice}"
    elif first - last <= 2 * error and last > _FALL * first:
        yield (
            f"task {task!r}: the training loss didn't fall ({figures}): the model learns no more, "
            f"or never did; {advice}, or a larger one"
        )
