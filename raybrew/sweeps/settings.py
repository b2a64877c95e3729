"""Tune's settings from YAML: schedulers, searchers, metric.

Checked before anything is labelled.
"""

import dataclasses
import datetime
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import ray
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
from raybrew.errors import ConfigError
from raybrew.runs.cluster import build_ray_object
from raybrew.runs.resolve import check_names
from raybrew.sweeps.space import JobSpace, Range, domain_from, range_of, text_of
from raybrew.training.ray_private import worker_resources

# What Tune's settings, schedulers and searchers take: values that they would stumble over later.
#
# Tune itself looks at most of them when the first trial is due, after the labels were computed.

Check = tuple[Callable[[Any], bool], str]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_budget(value: Any) -> bool:
    if isinstance(value, datetime.timedelta):
        return value.total_seconds() > 0
    return _is_number(value) and value > 0


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value))


_BOOL: Check = (lambda v: isinstance(v, bool), "true or false")
_TEXT: Check = (lambda v: isinstance(v, str) and bool(v.strip()), "a name")
_POSITIVE: Check = (lambda v: _is_number(v) and v > 0, "a number greater than 0")
_NOT_NEGATIVE: Check = (lambda v: _is_number(v) and v >= 0, "a number of at least 0")
_ABOVE_ONE: Check = (lambda v: _is_number(v) and v > 1, "a number greater than 1")
_SHARE: Check = (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1")
_COUNT: Check = (lambda v: _is_integer(v) and v >= 1, "an integer of at least 1")
_LIMIT: Check = (lambda v: _is_integer(v) and v >= 0, "an integer of at least 0")
_SEED: Check = (lambda v: _is_integer(v) and 0 <= v < 2**32, "an integer from 0 to 4294967295")
_FUNCTION: Check = (callable, "a function, which a script can give and a file can't")

_SETTINGS: dict[str, Check] = {
    "mode": (lambda v: v in ("min", "max"), "min or max"),
    "metric": _TEXT,
    "num_samples": (
        lambda v: _is_integer(v) and (v >= 1 or v == -1),
        "an integer of at least 1, or -1 for as many as the time allows",
    ),
    "max_concurrent_trials": _LIMIT,
    "time_budget_s": (_is_budget, "a number of seconds greater than 0"),
    "reuse_actors": _BOOL,
    "trial_name_creator": _FUNCTION,
    "trial_dirname_creator": _FUNCTION,
}
_NOT_NONE = ("num_samples", "reuse_actors")

_ARGUMENTS: dict[str, Check] = {
    "time_attr": _TEXT,
    "max_t": _POSITIVE,
    "grace_period": _POSITIVE,
    "reduction_factor": _ABOVE_ONE,
    "brackets": _COUNT,
    "stop_last_trials": _BOOL,
    "min_samples_required": _COUNT,
    "min_time_slice": _NOT_NEGATIVE,
    "hard_stop": _BOOL,
    "perturbation_interval": _POSITIVE,
    "burn_in_period": _NOT_NEGATIVE,
    "hyperparam_mutations": (
        lambda v: isinstance(v, Mapping) and bool(v),
        "a mapping of paths to lists of values or search spaces",
    ),
    "quantile_fraction": (lambda v: _is_number(v) and 0 <= v <= 0.5, "a number from 0 to 0.5"),
    "resample_probability": _SHARE,
    "perturbation_factors": (_is_pair, "a list of two numbers"),
    "custom_explore_fn": _FUNCTION,
    "log_config": _BOOL,
    "require_attrs": _BOOL,
    "synch": _BOOL,
    "seed": _SEED,
    "random_state": _SEED,
    "max_concurrent": _LIMIT,
    "constant_grid_search": _BOOL,
    "points_to_evaluate": (
        lambda v: isinstance(v, list) and all(isinstance(each, Mapping) for each in v),
        "a list of mappings of paths to values",
    ),
    "study_name": _TEXT,
    "space": (lambda v: False, "the search spaces under space: of the file alone"),
}
_MAY_BE_NONE = ("seed", "random_state", "points_to_evaluate", "study_name")


def check_settings(config: Any) -> None:
    """Refuse settings that Tune can't use.

    Args:
        config: Ray's TuneConfig.

    Raises:
        ConfigError: with each of them.
    """
    values = {name: getattr(config, name) for name in _SETTINGS}
    given = {k: v for k, v in values.items() if v is not None or k in _NOT_NONE}
    _refuse("tune", given, _SETTINGS)


def check_arguments(what: str, values: Mapping[str, Any]) -> None:
    """Refuse arguments of a scheduler or searcher that it would stumble over.

    Args:
        what: the place in the file.
        values: by name; names that aren't known are left to Tune.

    Raises:
        ConfigError: with each of them.
    """
    given = {k: v for k, v in values.items() if v is not None or k not in _MAY_BE_NONE}
    _refuse(what, given, _ARGUMENTS)


def _refuse(what: str, given: Mapping[str, Any], checks: Mapping[str, Check]) -> None:
    wrong = [
        f"{what}.{name}: expected {checks[name][1]}, got {value!r}"
        for name, value in given.items()
        if name in checks and not checks[name][0](value)
    ]
    if wrong:
        raise ConfigError("\n".join(wrong))


# What the settings name of a job and its trials, looked at before anything is labelled.

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


# Tune's settings: from YAML, with the sweep's defaults, and checked.
#
# num_samples: 24
# scheduler:  {asha: {max_t: 6, grace_period: 1}}
# search_alg: {optuna: {seed: 0}}

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


def tune_config_from(values: Mapping[str, Any]) -> tune.TuneConfig:
    """Return Ray's TuneConfig with the arguments of a job file's `tune:`.

    Raises:
        ConfigError: a name that Tune hasn't got, or an argument that it refuses.
    """
    plain = dict(values)
    for name, known in (("scheduler", SCHEDULERS), ("search_alg", SEARCHERS)):
        if plain.get(name) is not None:
            plain[name] = _named(f"tune.{name}", plain[name], known)
    return build_ray_object(tune.TuneConfig, "tune", plain)


def tune_run_config_from(values: Mapping[str, Any]) -> tune.RunConfig | None:
    """Return Ray's RunConfig of a sweep with the arguments of a job file's `run:`."""
    if not values:
        return None
    plain = {"storage_path": "runs", **values}
    nested = {"failure_config": tune.FailureConfig, "checkpoint_config": tune.CheckpointConfig}
    for name, kind in nested.items():
        if isinstance(plain.get(name), Mapping):
            plain[name] = build_ray_object(kind, f"run.{name}", plain[name])
    return build_ray_object(tune.RunConfig, "run", plain)


def with_defaults(config: tune.TuneConfig | None) -> tune.TuneConfig:
    """Return the settings with the score as the metric, where they name none.

    Raises:
        ConfigError: settings that Tune can't use.
    """
    config = config or tune.TuneConfig()
    check_settings(config)
    full = dataclasses.replace(config, metric=config.metric or SCORE, mode=config.mode or "max")
    # A scheduler must have neither. A searcher would quietly take others than its own.
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


def _own(part: Any, name: str) -> Any:
    return getattr(part, name, None) or getattr(part, f"_{name}", None)


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
            with warnings.catch_warnings(action="ignore"):  # it says them again when it begins
                OptunaSearch.convert_search_space({path: each})
        except ValueError as error:
            raise ConfigError(f"space.{path}: {error}") from error


def points_of(
    config: tune.TuneConfig, space: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[str] | None]:
    """Return the points that the search begins with, and the paths that each of them must name.

    Args:
        config: whose searcher has them.
        space: Tune's search spaces, by path.

    Returns:
        The points; the paths are None where the searcher takes any.
    """
    searcher = _searcher(config)
    points = getattr(searcher, "_points_to_evaluate", None) or []
    drawn = [path for path, each in space.items() if isinstance(each, Domain)]
    return points, drawn if isinstance(searcher, OptunaSearch) else None


def _searcher(config: tune.TuneConfig) -> Any:
    searcher: Any = config.search_alg
    return getattr(searcher, "searcher", searcher)  # where its trials are limited


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
            Range.choice(f"one of {text_of(given)}", tuple(given))
            if isinstance(given, list)
            else range_of(path, given)
        )
    return found


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
    check_arguments(what, arguments)
    mutations = arguments.get("hyperparam_mutations")
    if isinstance(mutations, Mapping):
        section = f"{what}.hyperparam_mutations"
        arguments["hyperparam_mutations"] = {
            str(path): _mutation(section, str(path), given) for path, given in mutations.items()
        }
    return build_ray_object(known[name], what, arguments)


def _mutation(section: str, path: str, given: Any) -> Any:
    if isinstance(given, list) and given:
        return given
    if isinstance(given, list) or (isinstance(given, Mapping) and "grid_search" in given):
        raise ConfigError(
            f"{section}.{path}: expected a list of values, or a search space such as "
            f"{{uniform: [1, 10]}}, got {given!r}"
        )
    return domain_from(path, given, section)


def scaling_section(scaling: ScalingConfig) -> dict[str, Any]:
    """What a job file says of a trial's workers: what differs from Ray Train's defaults."""
    default = ScalingConfig()
    names = ("num_workers", "use_gpu", "resources_per_worker")
    changed = {
        name: getattr(scaling, name)
        for name in names
        if getattr(scaling, name) != getattr(default, name)
    }
    return {"scaling": changed} if changed else {}
