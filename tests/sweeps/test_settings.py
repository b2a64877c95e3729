"""Tune's objects from YAML, and what a sweep adds to them."""

import datetime

import pytest
from ray import tune
from ray.train import ScalingConfig
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, PopulationBasedTraining
from ray.tune.search.optuna import OptunaSearch

import raybrew as rb
from raybrew.runs.folder import RunFolder
from raybrew.sweeps.settings import (
    SCORE,
    check_space,
    concurrency,
    copies_checkpoints,
    mutated_ranges,
    tune_config_from,
    tune_run_config_from,
    with_defaults,
)
from raybrew.sweeps.space import range_of
from raybrew.sweeps.sweep import check_is_sweep, remember


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
        ({"scheduler": {"asha": {"max_t": -1}}}, "max_t: expected a number greater than 0, got -1"),
        ({"search_alg": {"optuna": 3}}, "argument: value"),
        ({"search_alg": {"optuna": 0}}, "argument: value"),
        ({"scheduler": {"asha": {}, "fifo": {}}}, "with one of asha"),
        ({"scheduler": ["asha"]}, r"with one of asha.*got \['asha'\]"),
        ({"scheduler": {"pbt": {}}}, "tune.scheduler.pbt: Ray's PopulationBasedTraining refused"),
        ({"mode": "maximum"}, "tune.mode: expected one of min, max.* got 'maximum'"),
        ({"mode": ["max"]}, "tune.mode: expected one of min, max"),
        ({"metric": ""}, "tune.metric: expected a text with at least 1 character, got ''"),
        ({"metric": 3}, "tune.metric"),
        ({"num_samples": 0}, "tune.num_samples: expected an integer of at least 1"),
        ({"num_samples": -2}, "tune.num_samples"),
        ({"num_samples": 1.5}, "tune.num_samples"),
        ({"num_samples": None}, "tune.num_samples"),
        ({"num_samples": "many"}, "tune.num_samples"),
        ({"max_concurrent_trials": -1}, "tune.max_concurrent_trials: .*equal to 0, got -1"),
        ({"max_concurrent_trials": True}, "tune.max_concurrent_trials"),
        ({"time_budget_s": 0}, "tune.time_budget_s: expected a number greater than 0"),
        ({"time_budget_s": "1h"}, "tune.time_budget_s.*'1h'"),
        ({"reuse_actors": "no"}, "tune.reuse_actors: expected true or false"),
        ({"trial_name_creator": "x"}, "tune.trial_name_creator: expected a function"),
        ({"trial_dirname_creator": "x"}, "tune.trial_dirname_creator: expected a function"),
        ({"search_alg": {"optuna": {"seed": "a"}}}, "tune.search_alg.optuna.seed: .*integer"),
        ({"search_alg": {"optuna": {"seed": 1.5}}}, "tune.search_alg.optuna.seed: .*integer"),
        ({"search_alg": {"optuna": {"space": {}}}}, "optuna.space: expected the search spaces"),
        (
            {"search_alg": {"optuna": {"sampler": "tpe"}}},
            "sampler: expected an instance of .*'tpe'",
        ),
        (
            {"search_alg": {"random": {"max_concurrent": -1}}},
            "max_concurrent: .*equal to 0, got -1",
        ),
        ({"scheduler": {"median_stopping": {"grace_period": "1"}}}, "grace_period: .*got '1'"),
        ({"scheduler": {"asha": {"max_t": "9"}}}, "max_t: expected a valid number, got '9'"),
        ({"scheduler": {"hyperband": {"reduction_factor": 1}}}, "reduction_factor: .*than 1"),
    ],
)
def test_what_tune_cant_use_is_reported_before_anything_runs(values, what):
    with pytest.raises(rb.ConfigError, match=what):
        with_defaults(tune_config_from(values))


@pytest.mark.parametrize(
    ("mutations", "what"),
    [
        (5, "hyperparam_mutations: expected a mapping, got 5"),
        ({}, "hyperparam_mutations: expected at least 1 key, got {}"),
        ({"training.learning_rate": []}, "training.learning_rate: expected a list of values"),
        ({"training.learning_rate": 5}, "mutations.training.learning_rate: expected {function"),
        ({"training.learning_rate": {"grid_search": [1]}}, "expected a list of values"),
        (
            {"training.learning_rate": {"uniform": [1]}},
            "rate.uniform: Ray's uniform refused.*upper",
        ),
    ],
)
def test_mutations_that_cant_be_are_reported_with_their_place(mutations, what):
    with pytest.raises(rb.ConfigError, match=f"tune.scheduler.pbt.*{what}"):
        tune_config_from({"scheduler": {"pbt": {"hyperparam_mutations": mutations}}})


def test_no_value_to_change_to_is_reported_in_a_script_too():
    scheduler = PopulationBasedTraining(hyperparam_mutations={"distillation.temperature": []})
    with pytest.raises(rb.ConfigError, match="expected at least one value"):
        mutated_ranges(scheduler)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (tune.grid_search([1, 2]), "OptunaSearch takes no grid_search"),
        (tune.randn(1, 0.1), "space.distillation.temperature: Optuna search does not support"),
    ],
)
def test_spaces_that_optuna_cant_search_are_reported_before_anything_runs(given, what):
    space = {"distillation.temperature": given, "training.seed": tune.randint(1, 3)}
    with pytest.raises(rb.ConfigError, match=what):
        check_space(tune_config_from({"search_alg": "optuna"}), space)
    check_space(tune_config_from({}), space)
    check_space(tune_config_from({"search_alg": "optuna"}), {"x": tune.choice([1, [2]])})


def test_settings_that_tune_can_use_are_left_alone():
    config = tune.TuneConfig(num_samples=-1, time_budget_s=datetime.timedelta(hours=1))
    assert with_defaults(config).time_budget_s == datetime.timedelta(hours=1)
    assert with_defaults(tune_config_from({"search_alg": {"optuna": {"seed": None}}})).search_alg
    assert with_defaults(tune.TuneConfig(trial_name_creator=str, max_concurrent_trials=0))


def test_only_a_sweep_goes_on_and_with_its_own_space_alone(tmp_path):
    folder = RunFolder(str(tmp_path), "run")
    ranges = {"training.seed": range_of("training.seed", tune.choice([1, 2]))}
    folder.path.mkdir()
    check_is_sweep(folder.path)
    (folder.path / "job.yaml").touch()
    with pytest.raises(rb.ConfigError, match=r"expected a sweep to resume in .*run, got a run"):
        check_is_sweep(folder.path)
    remember(folder, ranges, resume=False)
    check_is_sweep(folder.path)
    remember(folder, ranges, resume=True)
    with pytest.raises(rb.ConfigError, match="began with another space"):
        remember(folder, {}, resume=True)
    for broken in ("{", "[" * 100_000, ""):
        (folder.path / "space.json").write_text(broken)
        with pytest.raises(rb.ConfigError, match=r"space\.json, got a file that can't be read"):
            remember(folder, ranges, resume=True)


def test_the_score_is_the_metric_where_none_is_named():
    assert (with_defaults(None).metric, with_defaults(None).mode) == (SCORE, "max")
    own = with_defaults(tune.TuneConfig(metric="train/sum/loss", mode="min"))
    assert (own.metric, own.mode) == ("train/sum/loss", "min")
    with pytest.raises(rb.ConfigError, match="TuneConfig alone, got one in AsyncHyperBand"):
        with_defaults(tune.TuneConfig(scheduler=ASHAScheduler(metric="x", mode="max")))


@pytest.mark.parametrize(
    "values",
    [
        {"scheduler": {"asha": {"mode": "max"}}},
        {"scheduler": {"median_stopping": {"mode": "min"}}},
        {"scheduler": {"asha": {"metric": SCORE}}, "metric": SCORE},
        {"search_alg": {"optuna": {"mode": "min"}}},
        {"search_alg": {"optuna": {"metric": "train/sum/loss"}}, "metric": SCORE},
    ],
)
def test_metric_and_mode_stand_in_one_place(values):
    with pytest.raises(rb.ConfigError, match="metric and its mode in TuneConfig alone, got one in"):
        with_defaults(tune_config_from(values))


def test_a_searcher_may_say_the_same_metric_and_mode():
    optuna = {"optuna": {"metric": SCORE, "mode": "max"}}
    assert with_defaults(tune_config_from({"search_alg": optuna, "metric": SCORE})).mode == "max"


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
    given = {"name": "s", "failure_config": {"max_failures": 2}}
    config = tune_run_config_from(given)
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


def test_workers_that_need_nothing_fit_as_often_as_the_user_says(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 9.0})
    pairs = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0})
    assert concurrency(tune.TuneConfig(), pairs) is None
    assert concurrency(tune.TuneConfig(max_concurrent_trials=2), pairs) == 2
