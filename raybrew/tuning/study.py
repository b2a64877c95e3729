"""The trials as a study of Optuna's, which knows how to weigh parameters and to draw them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial

from raybrew.tuning.ranges import Range
from raybrew.tuning.results import TrialRow, short_cell

__all__ = ["importances", "study_of"]

FEWEST = 4
"""Trials below which nothing can be said of a parameter's importance."""


def study_of(
    rows: Sequence[TrialRow], ranges: Mapping[str, Range], mode: str
) -> optuna.study.Study:
    """Return the trials that have a score, each at its last one, whether or not it was stopped.

    A score that is no finite number, such as the correlation of a constant, is none.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    searched = {path: each for path, each in ranges.items() if each.searches}
    distributions = {path: _distribution(path, rows, each) for path, each in searched.items()}
    for row in rows:
        if row.status == "failed" or row.score is None or not math.isfinite(row.score):
            continue
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=row.score,
                params={path: _parameter(row.config[path], searched[path]) for path in searched},
                distributions=distributions,
                intermediate_values={n: y for n, y in row.curve if math.isfinite(y)},
            )
        )
    return study


def importances(study: optuna.study.Study) -> dict[str, float]:
    """Return each parameter's share in what separates good trials from the others (PED-ANOVA).

    Empty where there are too few trials, or all score the same.

    Reference:
        Watanabe et al., PED-ANOVA (IJCAI 2023), as Optuna computes it.
    """
    scores = {trial.value for trial in study.trials}
    if len(study.trials) < FEWEST or len(scores) < 2:
        return {}
    return optuna.importance.get_param_importances(study)


def _distribution(path: str, rows: Sequence[TrialRow], each: Range) -> BaseDistribution:
    if each.interval is None:
        # Trials may hold values that a user's function gave, or PBT made of the listed ones.
        seen = [_parameter(row.config[path], each) for row in rows]
        listed = [_parameter(value, each) for value in each.values]
        return CategoricalDistribution(list(dict.fromkeys([*listed, *seen])))
    numbers = [row.config[path] for row in rows]
    low, high = min([each.interval[0], *numbers]), max([each.interval[1], *numbers])
    if each.integer:
        return IntDistribution(int(low), int(high), log=each.log)
    return FloatDistribution(float(low), float(high), log=each.log)


def _parameter(value: Any, each: Range) -> Any:
    if each.interval is not None:
        return value
    if isinstance(value, (bool, int, float, str)):
        return value
    if value is None:
        return "none"
    # Long ones are cut where they are drawn: their number keeps them apart.
    number = next((n for n, one in enumerate(each.values) if one == value), len(each.values))
    return f"{number}: {short_cell(value)}"
