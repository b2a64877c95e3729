"""Tune's objects from YAML, and what a sweep adds to them."""

import pytest
from ray import tune
from ray.train import ScalingConfig
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, PopulationBasedTraining
from ray.tune.search.optuna import OptunaSearch

import raybrew as rb
from raybrew.tuning.settings import (
    SCORE,
    concurrency,
    copies_checkpoints,
    mutated_ranges,
    tune_config_from,
    tune_run_config_from,
    with_defaults,
)


def test_schedulers_and_searchers_are_named_in_yaml():
    config = tune_config_from(
        {
            "num_samples": 24,
            "scheduler": {"asha": {"max_t": 6, "grace_period": 1}},
            "search_alg": {"optuna": {"seed": 3}},
        }
    )
    assert isinstance(config.scheduler, ASHAScheduler)
    assert isinstance(config.search_alg, OptunaSearch)
    assert config.num_samples == 24
    assert isinstance(
        tune_config_from({"scheduler": "median_stopping"}).scheduler, MedianStoppingRule
    )


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"num_sample": 3}, "num_samples"),
        ({"scheduler": {"ashaa": {}}}, "asha"),
        ({"scheduler": {"asha": {"max_tt": 3}}}, "max_t"),
        ({"scheduler": {"asha": {"max_t": -1}}}, "refused"),
        ({"search_alg": {"optuna": 3}}, "argument: value"),
    ],
)
def test_what_tune_has_not_got_is_said(values, what):
    with pytest.raises(rb.ConfigError, match=what):
        tune_config_from(values)


def test_the_score_is_the_metric_where_none_is_named():
    assert (with_defaults(None).metric, with_defaults(None).mode) == (SCORE, "max")
    own = with_defaults(tune.TuneConfig(metric="train/sum/loss", mode="min"))
    assert (own.metric, own.mode) == ("train/sum/loss", "min")
    with pytest.raises(rb.ConfigError, match="TuneConfig alone, got one in AsyncHyperBand"):
        with_defaults(tune.TuneConfig(scheduler=ASHAScheduler(metric="x", mode="max")))


def test_population_based_training_changes_what_can_change_alone():
    yaml = {
        "perturbation_interval": 1,
        "hyperparam_mutations": {
            "training.learning_rate": {"loguniform": [1e-4, 1e-2]},
            "distillation.temperature": [1, 2, 4],
        },
    }
    scheduler = tune_config_from({"scheduler": {"pbt": yaml}}).scheduler
    ranges = mutated_ranges(scheduler)
    assert copies_checkpoints(scheduler)
    assert ranges["distillation.temperature"].values == (1, 2, 4)
    assert ranges["training.learning_rate"].interval == (1e-4, 1e-2)
    assert mutated_ranges(ASHAScheduler()) == {}
    for path in ("student.config.num_hidden_layers", "training.batch_size", "distillation.matches"):
        scheduler = PopulationBasedTraining(hyperparam_mutations={path: [1, 2]})
        with pytest.raises(rb.ConfigError, match="can't change while a student trains"):
            mutated_ranges(scheduler)


def test_the_folder_of_a_sweep_is_rays_own_setting():
    config = tune_run_config_from({"name": "s", "failure_config": {"max_failures": 2}})
    assert config is not None
    assert (config.name, config.failure_config.max_failures) == ("s", 2)  # type: ignore[union-attr]
    with pytest.raises(rb.ConfigError, match=r"run\.nam.*name"):
        tune_run_config_from({"nam": "s"})


def test_trials_of_several_workers_are_no_more_than_fit(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 9.0, "GPU": 2.0})
    pairs = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1, "GPU": 0.25}, use_gpu=True)
    assert concurrency(tune.TuneConfig(), pairs) == 4
    assert concurrency(tune.TuneConfig(max_concurrent_trials=2), pairs) == 2
    assert concurrency(tune.TuneConfig(), ScalingConfig()) is None
