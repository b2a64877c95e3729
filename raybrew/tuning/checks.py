"""What the settings name of a job and its trials, looked at before anything is labelled."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from raybrew.config import DistillJob
from raybrew.errors import ConfigError
from raybrew.preparation.prepare import check_names
from raybrew.tuning.space import JobSpace

__all__ = ["FIGURES", "SCORE", "check_labels", "check_metric", "check_points"]

FIGURES = ("eval/", "train/", "labels/", "time/")
"""What the names of a trial's figures begin with."""
SCORE = "eval/score"
"""The mean of the tasks' main metrics: what a sweep looks at if nothing else is said."""

OTHERS = (
    "step",
    "training_iteration",
    "iterations_since_restore",
    "time_this_iter_s",
    "time_total_s",
    "time_since_restore",
)
"""What trials report besides: their step, and what Tune itself counts."""


def check_labels(job: DistillJob) -> None:
    """Refuse a store that may lack labels when it is full.

    Raises:
        ConfigError: says why.
    """
    if job.labels.on_full == "go_on":
        raise ConfigError(
            "labels.on_full: expected stop in a sweep (the teachers are gone by the time that "
            "a trial needs a label that was not stored), got go_on"
        )


def check_metric(metric: str, job: DistillJob) -> None:
    """Refuse a metric that no trial reports.

    Args:
        metric: what the sweep looks at.
        job: one of its trials.

    Raises:
        ConfigError: names it, and what could stand there.
    """
    if metric.startswith("eval/"):
        evaluated = [task.name for task in job.tasks if task.eval is not None]
        if not evaluated:
            raise ConfigError(
                f"tune.metric: expected a task with rows to evaluate on (tasks.<name>.eval) for "
                f"{metric}, got none; or name a metric of training, such as train/<task>/loss"
            )
        places = tuple(f"eval/{name}/" for name in evaluated)
        if metric != SCORE and not (metric.startswith(places) and metric not in places):
            raise ConfigError(
                f"tune.metric: expected {SCORE} or {', '.join(f'{p}<metric>' for p in places)}, "
                f"got {metric!r}"
            )
    elif not metric.startswith(FIGURES) and metric not in OTHERS:
        raise ConfigError(
            f"tune.metric: expected a name that begins with {', '.join(FIGURES)}, or one of "
            f"{', '.join(OTHERS)}, got {metric!r}"
        )


def check_points(
    points: Sequence[Mapping[str, Any]],
    drawn: Sequence[str] | None,
    known: Collection[str],
    space: JobSpace,
) -> None:
    """Refuse points that the user has the search begin with, and that can't be tried.

    Args:
        points: of the searcher.
        drawn: paths that a searcher draws by itself, where it takes points of all of them alone.
        known: paths that trials begin with.
        space: what is looked at before the first trial.

    Raises:
        ConfigError: with every mistake.
    """
    mistakes = []
    for number, point in enumerate(points):
        what = f"points_to_evaluate[{number}]"
        wrong = list(_wrong_paths(what, point, drawn, known))
        mistakes += wrong or list(_wrong_values(what, point, space, drawn or ()))
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def _wrong_paths(
    what: str, point: Mapping[str, Any], drawn: Sequence[str] | None, known: Collection[str]
) -> Iterator[str]:
    unknown = [path for path in point if path not in known]
    for path in unknown:
        yield f"{what}: expected paths of the space ({', '.join(known)}), got {path!r}"
    if drawn is not None and not unknown and set(point) != set(drawn):
        yield (
            f"{what}: expected a value of every path that Optuna searches ({', '.join(drawn)}), "
            f"got {', '.join(point) or 'none'}"
        )


def _wrong_values(
    what: str, point: Mapping[str, Any], space: JobSpace, drawn: Sequence[str]
) -> Iterator[str]:
    for path, value in point.items():
        each = space.ranges[path]
        # Other values have no labels, and Optuna stumbles over what a choice doesn't list.
        listed = space.asks(path) or (path in drawn and each.interval is None)
        if each.complete and listed and value not in each.values:
            yield f"{what}.{path}: expected what {each.said} can give, got {value!r}"
    try:
        check_names(space.job({**space.first, **point}))
    except ConfigError as error:
        yield f"{what}: expected values that make a job, got {dict(point)!r}: {error}"
