"""Tune's settings: from YAML, with the sweep's defaults, and checked.

num_samples: 24
scheduler:  {asha: {max_t: 6, grace_period: 1}}
search_alg: {optuna: {seed: 0}}
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
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

from raybrew.cluster import build_ray_object
from raybrew.errors import ConfigError
from raybrew.tuning.arguments import check_arguments, check_settings
from raybrew.tuning.checks import SCORE
from raybrew.tuning.domains import domain_from, range_of, said_of
from raybrew.tuning.ranges import Range

__all__ = [
    "check_space",
    "concurrency",
    "copies_checkpoints",
    "mutated_ranges",
    "points_of",
    "scaling_section",
    "tune_config_from",
    "tune_run_config_from",
    "with_defaults",
]

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
            Range.choice(f"one of {said_of(given)}", tuple(given))
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
    worker: Any = scaling._resources_per_worker_not_none
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
