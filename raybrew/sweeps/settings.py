"""The settings of a sweep: Tune's own, from YAML, checked before anything is labelled.

num_samples: 24
scheduler:  {asha: {max_t: 6, grace_period: 1}}
search_alg: {optuna: {seed: 0}}

Tune itself checks most of them when the first trial is due, after the labels were computed.
"""

import dataclasses
import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, Literal

import ray
from pydantic import AfterValidator, Field
from ray import tune
from ray.train import ScalingConfig
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from raybrew.config import DistillJob
from raybrew.errors import ConfigError, collect_mistakes
from raybrew.runs.ray_config import Types, build_ray_object, check_arguments, run_config_from
from raybrew.runs.resolve import check_names
from raybrew.sweeps.space import JobSpace, Range, domain_from, range_of, text_of
from raybrew.training.ray_private import worker_resources

METRICS = ("eval/", "train/", "labels/", "time/")
"""How the names of a trial's metrics begin."""
SCORE = "eval/score"
"""The mean of the tasks' main metrics: the metric of a sweep by default."""
OTHER_METRICS = (
    "step",
    "training_iteration",
    "iterations_since_restore",
    "time_this_iter_s",
    "time_total_s",
    "time_since_restore",
)
"""What trials report besides: their step, and what Tune itself counts."""

SCHEDULERS = {
    "asha": ASHAScheduler,
    "fifo": FIFOScheduler,
    "hyperband": HyperBandScheduler,
    "median_stopping": MedianStoppingRule,
    "pbt": PopulationBasedTraining,
}
SEARCHERS = {"optuna": OptunaSearch, "random": BasicVariantGenerator}

_MUTABLE = (
    "distillation.",
    "training.learning_rate",
    "training.max_grad_norm",
    "training.optimizer_options.",
)


def _samples(value: int) -> int:
    if value < 1 and value != -1:
        raise ValueError(
            "expected an integer of at least 1, or -1 for as many as the time allows, got "
            f"{value!r}"
        )
    return value


def _no_space(value: Any) -> Any:
    raise ValueError(f"expected the search spaces under space: of the file alone, got {value!r}")


_Positive: Any = Annotated[float, Field(gt=0)]
_Time: Any = Annotated[timedelta, Field(gt=timedelta(0))]
_TUNE: Types = {
    "mode": Literal["min", "max"] | None,
    "metric": Annotated[str | None, Field(min_length=1)],
    "num_samples": Annotated[int, AfterValidator(_samples)],
    "max_concurrent_trials": Annotated[int | None, Field(ge=0)],
    "time_budget_s": _Positive | _Time | None,
}
_PARTS: Types = {
    "max_t": _Positive,  # in units of time_attr, which may be fractions
    "grace_period": _Positive,
    "reduction_factor": Annotated[float, Field(gt=1)],
    "seed": Annotated[int | None, Field(ge=0, lt=2**32)],
    "max_concurrent": Annotated[int, Field(ge=0)],
    "hyperparam_mutations": Annotated[dict[str, Any], Field(min_length=1)],
    "space": Annotated[Any, AfterValidator(_no_space)],
}


def tune_config_from(values: Mapping[str, Any]) -> tune.TuneConfig:
    """Return Ray's TuneConfig with the arguments of a job file's `tune:`.

    Raises:
        ConfigError: a name that Tune doesn't have, or an argument that it refuses.
    """
    plain = dict(values)
    mistakes: list[str] = []
    for name, known in (("scheduler", SCHEDULERS), ("search_alg", SEARCHERS)):
        if plain.get(name) is not None:
            given = plain.pop(name)
            with collect_mistakes(mistakes):
                plain[name] = _named(f"tune.{name}", given, known)
    with collect_mistakes(mistakes):
        config = build_ray_object(tune.TuneConfig, "tune", plain, _TUNE)
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return config


def tune_run_config_from(values: Mapping[str, Any]) -> tune.RunConfig | None:
    """Return Ray Tune's RunConfig with the arguments of a job file's `run:`."""
    return run_config_from(values, library=tune)


def with_defaults(config: tune.TuneConfig | None) -> tune.TuneConfig:
    """Return the settings with the score as the metric, where they name none.

    Raises:
        ConfigError: settings that Tune can't use.
    """
    config = config or tune.TuneConfig()
    given = {
        each.name: getattr(config, each.name)
        for each in dataclasses.fields(config)
        if getattr(config, each.name) != each.default
    }
    check_arguments(tune.TuneConfig, "tune", given, _TUNE)
    full = dataclasses.replace(config, metric=config.metric or SCORE, mode=config.mode or "max")
    # A scheduler must have neither. A searcher would silently use its own.
    of_parts = [
        part
        for part, good in (
            (config.scheduler, {"metric": (None,), "mode": (None,)}),
            (config.search_alg, {"metric": (None, config.metric), "mode": (None, full.mode)}),
        )
        if any(_own(part, name) not in values for name, values in good.items())
    ]
    if of_parts:
        raise ConfigError(
            "tune_config: expected the metric and its mode in TuneConfig alone, got one in "
            f"{', '.join(type(part).__name__ for part in of_parts)}"
        )
    return full


def scaling_section(scaling: ScalingConfig) -> dict[str, Any]:
    """Return `scaling:` of a job file: what differs from Ray Train's defaults."""
    default = ScalingConfig()
    names = ("num_workers", "use_gpu", "resources_per_worker")
    changed = {
        name: getattr(scaling, name)
        for name in names
        if getattr(scaling, name) != getattr(default, name)
    }
    return {"scaling": changed} if changed else {}


def concurrency(config: tune.TuneConfig, scaling: ScalingConfig) -> int | None:
    """Return how many trials of several workers fit at once: more would wait for each other.

    Args:
        config: the user's limit is kept if it is lower.
        scaling: of one trial.
    """
    if scaling.min_workers == 1:
        return config.max_concurrent_trials
    worker = worker_resources(scaling)
    has = ray.cluster_resources()
    fits = [
        math.floor(has.get(name, 0) / (need * scaling.min_workers) + 1e-9)
        for name, need in worker.items()
        if need > 0
    ]
    # Without a limit of the user's (None or 0) it is what fits; workers may need nothing.
    return min([*fits, *filter(None, [config.max_concurrent_trials])], default=None)


# Schedulers


def copies_checkpoints(scheduler: TrialScheduler | None) -> bool:
    """Whether the scheduler moves checkpoints between trials, which `TorchTrainer` can't take."""
    return isinstance(scheduler, PopulationBasedTraining)


def mutated_ranges(scheduler: TrialScheduler | None) -> dict[str, Range]:
    """Return what population based training may change while a trial runs.

    Raises:
        ConfigError: a path that can't change between two steps of a student.
    """
    if not isinstance(scheduler, PopulationBasedTraining):
        return {}
    found: dict[str, Range] = {}
    for path, given in scheduler._hyperparam_mutations.items():
        if not _is_mutable(path):
            raise ConfigError(
                f"hyperparam_mutations: {path} can't change while a student trains; expected "
                f"paths that begin with {', '.join(_MUTABLE)}, or end with .weight"
            )
        if isinstance(given, list) and not given:
            raise ConfigError(f"hyperparam_mutations.{path}: expected at least one value, got []")
        found[path] = (
            Range(f"one of {text_of(given)}", tuple(given))
            if isinstance(given, list)
            else range_of(path, given)
        )
    return found


def _is_mutable(path: str) -> bool:
    if path.startswith("distillation.matches"):
        return path.endswith(".weight")
    return path.startswith(_MUTABLE) or (path.startswith("teachers.") and path.endswith(".weight"))


def _named(what: str, given: Any, known: Mapping[str, Any]) -> Any:
    name, arguments = given, {}
    if isinstance(given, Mapping) and len(given) == 1:
        name, arguments = next(iter(given.items()))
    named = isinstance(name, str) and name in known
    if not named or not isinstance({} if arguments is None else arguments, Mapping):
        raise ConfigError(
            f"{what}: expected {{name: {{argument: value}}}} with one of {', '.join(known)}, "
            f"got {given!r}"
        )
    what, arguments = f"{what}.{name}", dict(arguments or {})
    mutations = arguments.get("hyperparam_mutations")
    if isinstance(mutations, Mapping):
        section = f"{what}.hyperparam_mutations"
        arguments["hyperparam_mutations"] = {
            str(path): _mutation(section, str(path), given) for path, given in mutations.items()
        }
    return build_ray_object(known[name], what, arguments, _PARTS)


def _mutation(section: str, path: str, given: Any) -> Any:
    if isinstance(given, list) and given:
        return given
    if isinstance(given, list) or (isinstance(given, Mapping) and "grid_search" in given):
        raise ConfigError(
            f"{section}.{path}: expected a list of values, or a search space such as "
            f"{{uniform: [1, 10]}}, got {given!r}"
        )
    return domain_from(path, given, section)


def _own(part: Any, name: str) -> Any:
    return getattr(part, name, None) or getattr(part, f"_{name}", None)


# Searchers


def check_space(config: tune.TuneConfig, space: Mapping[str, Any]) -> None:
    """Refuse a space that the searcher can't search.

    Raises:
        ConfigError: names what it can't take.
    """
    searcher = _searcher(config)
    if not isinstance(searcher, Searcher):
        return
    grids = [p for p, each in space.items() if isinstance(each, Mapping) and "grid_search" in each]
    if grids:
        raise ConfigError(
            f"space.{grids[0]}: {type(searcher).__name__} takes no grid_search; expected a choice "
            "of the same values, or tune.search_alg: random"
        )
    if not isinstance(searcher, OptunaSearch):
        return
    for path, each in space.items():
        try:
            with warnings.catch_warnings(action="ignore"):  # it repeats them when it begins
                OptunaSearch.convert_search_space({path: each})
        except ValueError as error:
            raise ConfigError(f"space.{path}: {error}") from error


def check_points(config: tune.TuneConfig, given: Mapping[str, Any], space: JobSpace) -> None:
    """Refuse points that the user has the search begin with, and that can't be tried.

    Args:
        config: whose searcher has them.
        given: Tune's search spaces, by path.
        space: what they give.

    Raises:
        ConfigError: with every mistake.
    """
    searcher = _searcher(config)
    points = getattr(searcher, "_points_to_evaluate", None) or []
    # Optuna takes points of all paths that it searches.
    drawn = [path for path, each in given.items() if isinstance(each, Domain)]
    drawn = drawn if isinstance(searcher, OptunaSearch) else None
    mistakes = []
    for number, point in enumerate(points):
        what = f"points_to_evaluate[{number}]"
        wrong = list(_wrong_paths(what, point, drawn, given))
        mistakes += wrong or list(_wrong_values(what, point, space, drawn or ()))
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def _searcher(config: tune.TuneConfig) -> Any:
    searcher: Any = config.search_alg
    return getattr(searcher, "searcher", searcher)  # where its trials are limited


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
        # Other values have no labels, and Optuna fails at what a choice doesn't list.
        listed = space.is_prepared(path) or (path in drawn and each.interval is None)
        if each.complete and listed and value not in each.values:
            yield f"{what}.{path}: expected what {each.text} can give, got {value!r}"
    try:
        check_names(space.job({**space.first, **point}))
    except ConfigError as error:
        yield f"{what}: expected values that make a job, got {dict(point)!r}: {error}"


# The job


def check_labels(job: DistillJob) -> None:
    """Refuse a store that may lack labels when it is full.

    Raises:
        ConfigError: it may; explains why.
    """
    if job.labels.on_full == "go_on":
        raise ConfigError(
            "labels.on_full: expected stop in a sweep (the teachers have stopped by the time that "
            "a trial needs a label that was not stored), got go_on"
        )


def check_metric(metric: str, job: DistillJob) -> None:
    """Refuse a metric that no trial reports.

    Args:
        metric: of the sweep.
        job: one of its trials.

    Raises:
        ConfigError: names it, and the metrics that trials report.
    """
    if metric.startswith("eval/"):
        evaluated = [task.name for task in job.tasks if task.is_evaluated]
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
    elif not metric.startswith(METRICS) and metric not in OTHER_METRICS:
        raise ConfigError(
            f"tune.metric: expected a name that begins with {', '.join(METRICS)}, or one of "
            f"{', '.join(OTHER_METRICS)}, got {metric!r}"
        )
